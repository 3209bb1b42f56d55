"""The works to cite, as BibTeX."""

from __future__ import annotations

import re

REFERENCES = {
    "boes2015": """\
@article{boes2015,
  author = {Boes, Aaron D. and Prasad, Sashank and Liu, Hesheng and Liu, Qi and Pascual-Leone, Alvaro and
            Caviness, Jr, Verne S. and Fox, Michael D.},
  title = {Network localization of neurological symptoms from focal brain lesions},
  journal = {Brain},
  year = {2015},
  volume = {138},
  number = {10},
  pages = {3061--3075},
  doi = {10.1093/brain/awv228}
}
""",
    "bids_lacuna": """\
@software{bids_lacuna,
  author = {{bids_lacuna contributors}},
  title = {bids_lacuna: lesion network mapping as a BIDS App},
  version = {VERSION},
  url = {https://github.com/bids-lacuna/bids_lacuna}
}
""",
    "gorgolewski2017": """\
@article{gorgolewski2017,
  author = {Gorgolewski, Krzysztof J. and others},
  title = {{BIDS} apps: Improving ease of use, accessibility, and reproducibility of neuroimaging data analysis
           methods},
  journal = {PLOS Computational Biology},
  year = {2017},
  volume = {13},
  number = {3},
  pages = {e1005209},
  doi = {10.1371/journal.pcbi.1005209}
}
""",
    "harris2020": """\
@article{harris2020,
  author = {Harris, Charles R. and others},
  title = {Array programming with {NumPy}},
  journal = {Nature},
  year = {2020},
  volume = {585},
  pages = {357--362},
  doi = {10.1038/s41586-020-2649-2}
}
""",
    "freedman1983": """\
@article{freedman1983,
  author = {Freedman, David and Lane, David},
  title = {A nonstochastic interpretation of reported significance levels},
  journal = {Journal of Business \\& Economic Statistics},
  year = {1983},
  volume = {1},
  number = {4},
  pages = {292--298},
  doi = {10.1080/07350015.1983.10509354}
}
""",
    "phipson2010": """\
@article{phipson2010,
  author = {Phipson, Belinda and Smyth, Gordon K.},
  title = {Permutation {P}-values should never be zero: calculating exact {P}-values when permutations are randomly
           drawn},
  journal = {Statistical Applications in Genetics and Molecular Biology},
  year = {2010},
  volume = {9},
  number = {1},
  pages = {39},
  doi = {10.2202/1544-6115.1585}
}
""",
    "winkler2014": """\
@article{winkler2014,
  author = {Winkler, Anderson M. and Ridgway, Gerard R. and Webster, Matthew A. and Smith, Stephen M. and
            Nichols, Thomas E.},
  title = {Permutation inference for the general linear model},
  journal = {NeuroImage},
  year = {2014},
  volume = {92},
  pages = {381--397},
  doi = {10.1016/j.neuroimage.2014.01.060}
}
""",
    "lowekamp2013": """\
@article{lowekamp2013,
  author = {Lowekamp, Bradley C. and Chen, David T. and Ib{\\'a}{\\~n}ez, Luis and Blezek, Daniel},
  title = {The design of {SimpleITK}},
  journal = {Frontiers in Neuroinformatics},
  year = {2013},
  volume = {7},
  pages = {45},
  doi = {10.3389/fninf.2013.00045}
}
""",
    "esteban2019": """\
@article{esteban2019,
  author = {Esteban, Oscar and others},
  title = {{fMRIPrep}: a robust preprocessing pipeline for functional {MRI}},
  journal = {Nature Methods},
  year = {2019},
  volume = {16},
  pages = {111--116},
  doi = {10.1038/s41592-018-0235-4}
}
""",
    "ciric2022": """\
@article{ciric2022,
  author = {Ciric, Rastko and others},
  title = {{TemplateFlow}: {FAIR}-sharing of multi-scale, multi-species brain models},
  journal = {Nature Methods},
  year = {2022},
  volume = {19},
  pages = {1568--1571},
  doi = {10.1038/s41592-022-01681-2}
}
""",
    "nilearn": """\
@software{nilearn,
  author = {{Nilearn contributors}},
  title = {nilearn},
  doi = {10.5281/zenodo.8397156}
}
""",
}
"""BibTeX of each work that a methods text may cite, by its key."""

CITED = re.compile(r"@(\w+)")
"""A citation in pandoc's Markdown."""


def references(text: str, version: str) -> str:
    """Return the BibTeX of the works that a text cites, in the order of their first citation."""
    keys = dict.fromkeys(key for key in CITED.findall(text) if key in REFERENCES)
    return "\n".join(REFERENCES[key].replace("VERSION", version) for key in keys)
