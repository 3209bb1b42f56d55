"""README and documentation: each block of code runs as a reader would run it, or is checked without running.

`LANGUAGES` has a handler for each language, and `PROGRAMS` one for each program in shell blocks; a block without a
handler fails. The blocks of a page run in order in one folder, where the names of a reader's own folders (`BIDS_DIR`,
`STORE`, …) are synthetic data.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import synthetic
import test_build

from bids_lacuna import cli, demo
from bids_lacuna.app import connectome as connectome_app
from bids_lacuna.app import connectome_options, options
from bids_lacuna.derivatives import dataset

ROOT = Path(__file__).parents[1]

DOCS = ROOT / "docs"

PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>[^\n`]+)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)

IMAGES = ("ghcr.io/bids-lacuna/bids_lacuna", "bids-lacuna", "bids-lacuna.sif")
"""Names of the container image, which run the program."""

WITH_A_VALUE = ("-v", "-B", "-m", "--bind", "--user", "--entrypoint", "--tmpfs", "--network")
"""Options of Docker and Apptainer that take a value."""

PUBLISHED = ("piop1", "xcp_d", "hcp-xcp_d", "rbc-fixed")
"""Folders of public connectomes in the documentation."""

OF_OTHER_PROGRAMS = (
    *WITH_A_VALUE,
    *("--rm", "--read-only", "--containall", "--mem-per-cpu", "--signal", "--resources", "--build-arg"),
)
"""Options of other programs in the documentation."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    """Including the rest of its line."""
    text: str


def read_blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    blocks = [
        Block(found["language"].strip(), re.sub(f"^{found['indent']}", "", found["text"], flags=re.MULTILINE))
        for found in BLOCK.finditer(text)
    ]
    assert 2 * len(blocks) == len(re.findall(r"^ *```", text, re.MULTILINE)), (
        "an open fence, or one without a language"
    )
    return blocks


def commands(text: str) -> Iterator[list[str]]:
    """Split shell commands into words, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


@dataclass
class Reader:
    """A reader who works through a page in the current folder, with one method for each language."""

    page: Path
    names: dict[str, Any] = field(default_factory=dict)
    """Names defined in the reader's Python session."""

    def run_python(self, block: Block) -> None:
        """Run the block in the session of the earlier ones."""
        exec(compile(block.text, str(self.page), "exec"), self.names)

    def run_shell(self, block: Block) -> None:
        """Check the syntax with bash, then pass each command to the handler of its program."""
        check_bash(block.text)
        for words in commands(block.text):
            treat = PROGRAMS.get(words[0])
            assert treat, f"{self.page.name}: no handler for {words[0]}: add one to PROGRAMS"
            treat(words)

    def use_json(self, block: Block) -> None:
        """Write a filter for the next command, or map a dataset with this description."""
        content = json.loads(block.text)
        if "lesion" in content:
            Path("filter.json").write_text(block.text)
        else:
            assert {"Name", "BIDSVersion", "DatasetType", "GeneratedBy"} <= set(content)
            shutil.copytree("BIDS_DIR", "described")
            Path("described/dataset_description.json").write_text(block.text)
            run_app(["bids-lacuna", "described", "unused", "participant", "--connectome", "STORE"])

    def use_text(self, block: Block) -> None:
        """Write a table with a name for the next command, or check a listing of files."""
        if block.language == "text seeds.tsv":
            self.write_coordinates(block)
        else:
            self.compare_listing(block)

    def write_coordinates(self, block: Block) -> None:
        """Write coordinates, a quarter as far from the origin: the made-up brain is small."""
        columns, *rows = (line.split("\t") for line in block.text.splitlines())
        near = [[*row[:2], *(f"{float(x) / 4:g}" for x in row[2:5]), *row[5:]] for row in rows]
        Path("seeds.tsv").write_text("".join("\t".join(row) + "\n" for row in [columns, *near]))
        Path("BIDS_DIR/participants.tsv").write_text("participant_id\nsub-01\nsub-02\n")

    def use_toml(self, block: Block) -> None:
        """Write options for the next command."""
        assert tomllib.loads(block.text)
        Path("options.toml").write_text(block.text)

    def compare_listing(self, block: Block) -> None:
        """Check that the demo, its outputs or the earlier commands have each file."""
        recorded = set((ROOT / "tests" / "expected_outputs.txt").read_text().splitlines())
        made = {lesion.mask_path.as_posix() for lesion in demo.LESIONS} | set(demo.CONNECTOME_FILES)
        root, *files = list_files(block.text)
        for file in files:
            name = file.as_posix().replace("GSP1000", "synthetic").replace("<run>", "RUN")
            ends = {PurePosixPath(*file.parts[start:]).as_posix() for start in range(len(file.parts))}
            there = name in recorded or (root / file).exists() or ends & made
            assert there, f"{self.page.name}: {file} is not written"

    def look_at_example(self, block: Block) -> None:
        """Check that the file is an example that another test runs or checks."""
        path = (self.page.parent / block.language.split()[1]).resolve()
        assert path.parent == ROOT / "examples"
        assert any(path.name in test.read_text() for test in Path(__file__).parent.glob("test_*.py")), path

    def look_at_contents(self, block: Block) -> None:
        """Check that each page of a table of contents exists; the build fails if a page is in none."""
        for name in filter(None, (line for line in block.text.splitlines() if not line.startswith(":"))):
            assert [*self.page.parent.glob(f"{name}.md"), *self.page.parent.glob(f"{name}.rst")], name


def list_files(tree: str) -> list[Path]:
    """Return the root and the files of a tree with two spaces per level, without ellipses."""
    folders: list[str] = []
    files = []
    for line in tree.splitlines():
        name = re.split(r"\s{2,}", line.strip())[0]
        del folders[(len(line) - len(line.lstrip())) // 2 :]
        if name.endswith("/"):
            folders.append(name)
        elif not re.search(r"\.\.\.|…", name):
            files.append(Path(*folders[1:], name))
    return [Path(tree.split()[0]), *files]


LANGUAGES: dict[str, Callable[[Reader, Block], None]] = {
    "python": Reader.run_python,
    "bash": Reader.run_shell,
    "json": Reader.use_json,
    "toml": Reader.use_toml,
    "text": Reader.use_text,
    "{literalinclude}": Reader.look_at_example,
    "{toctree}": Reader.look_at_contents,
}


# Handlers of commands, by their first word.


def run_app(words: list[str]) -> None:
    """Run the program without reports, which take seconds each and have their own tests."""
    arguments = words[1:]
    parsed = parse("bids-lacuna", arguments)
    # A test needs more patients than the made-up dataset has, and has its own tests.
    if not parsed.reports_only and not parsed.test:
        assert cli.main([*arguments, "--no-reports"]) == 0, words


def run_connectome(words: list[str]) -> None:
    """Run the program in this process, but fetch nothing, and read nothing that others publish."""
    if words[1] == "fetch" or words[2] in PUBLISHED:
        parse("bids-lacuna-connectome", words[1:])
        return
    assert cli.connectome_main([*words[1:], *(["--nprocs", "1"] if words[1] == "build" else [])]) == 0, words


def run_checkout(words: list[str]) -> None:
    """Run `run.py`; replace the demo, which has its own tests, by small data."""
    match words[1:]:
        case ["run.py", *arguments]:
            run_app(["run.py", *arguments])
        case ["-m", "bids_lacuna.demo", folder]:
            shutil.copytree("BIDS_DIR", f"{folder}/bids")
            shutil.copytree("lacuna", f"{folder}/connectome")
        case _:
            raise AssertionError(words)


def check_target(words: list[str]) -> None:
    """Check that the Makefile has the target; other tests run its commands."""
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def check_container(words: list[str]) -> None:
    """Check that the program accepts the arguments, and that each path in them is mounted."""
    match words[1:]:
        case ["run", *rest]:
            check_run(rest)
        case ["exec", *rest]:
            check_run(rest, entrypoint="")
        case ["build", "-t", _, "."]:
            assert (ROOT / "Dockerfile").exists()
        case ["build", image, source]:
            assert image in IMAGES
            assert source.removeprefix("docker://").partition(":")[0] in IMAGES or (ROOT / source).exists()
        case ["test" | "run-help" as action, image]:
            assert image in IMAGES
            assert f"%{action.removeprefix('run-')}" in (ROOT / "Singularity.def").read_text()
        case _:
            raise AssertionError(words)


def check_run(words: list[str], entrypoint: str = "bids-lacuna") -> None:
    """Check the arguments of `docker run`, `apptainer run` or `apptainer exec`."""
    mounted = ["/tmp"]
    while words[0].startswith("-"):
        option = words.pop(0)
        assert option in OF_OTHER_PROGRAMS, option
        if option in WITH_A_VALUE:
            value = words.pop(0)
            if option in ("-v", "-B", "--bind"):
                outside, inside, *_ = value.split(":")
                assert Path(outside).is_absolute()
                mounted.append(inside)
            elif option == "--entrypoint":
                entrypoint = value
    image, *arguments = words
    assert image in IMAGES
    program, *arguments = [*filter(None, [entrypoint]), *arguments]
    parse(program, arguments)
    for path in map(Path, (word for word in arguments if word.startswith("/"))):
        assert any(path.is_relative_to(folder) for folder in mounted), f"{path} is not mounted"


def check_sbatch(words: list[str]) -> None:
    """Check that the example, which another test runs, gets as many arguments as it takes."""
    script, *rest = [word for word in words[1:] if not word.startswith("--")]
    taken = {int(number) for number in re.findall(r"\$\{?(\d)", (ROOT / script).read_text())}
    assert len(rest) == max(taken)


def check_babs(words: list[str]) -> None:
    """Check that the configuration is the example, whose options another test checks."""
    given = dict(zip(words[2::2], words[3::2], strict=False))
    assert words[1] == "init"
    assert ROOT / given["--container_config"] == ROOT / "examples" / "babs.yaml"


def check_datalad(words: list[str]) -> None:
    """Check that the command calls Apptainer with the image and the arguments; downloads are DataLad's."""
    if words[1] in ("clone", "get"):
        return
    call = shlex.split(words[words.index("--call-fmt") + 1])
    assert (call[:2], call[-2:]) == (["apptainer", "run"], ["{img}", "{cmd}"])


def check_clone(words: list[str]) -> None:
    """Check that the address is that of the project."""
    assert words[1:] == ["clone", dataset.CODE_URL]


def accept(words: list[str]) -> None:
    """Accept a command of another program, which prepares a public connectome."""
    assert {"s3", "participant", "fix_rbc_release_tr.py"}.intersection(words)


def step(words: list[str]) -> None:
    """Accept entering the checkout or its environment, where the reader already is."""
    assert words in (["cd", dataset.CODE_URL.rpartition("/")[2]], ["source", ".venv/bin/activate"])


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "bids-lacuna": run_app,
    "bids-lacuna-connectome": run_connectome,
    "python": run_checkout,
    ".venv/bin/python": run_checkout,
    "make": check_target,
    "docker": check_container,
    "apptainer": check_container,
    "sbatch": check_sbatch,
    "babs": check_babs,
    "datalad": check_datalad,
    "git": check_clone,
    "aws": accept,
    "xcp_d": accept,
    "uv": accept,
    "cd": step,
    "source": step,
}


def parse(program: str, arguments: list[str]) -> argparse.Namespace:
    """Parse a command line as the program does, which exits on a usage error."""
    parsers = {"bids-lacuna": options.build_parser, "bids-lacuna-connectome": connectome_options.build_parser}
    return parsers[program]().parse_args(arguments)


def check_bash(script: str) -> None:
    """Check the syntax of a script with bash, without running it."""
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a reader's data: a dataset, masks, a downloaded connectome, and a store of it."""
    place = tmp_path_factory.mktemp("made_up")
    names = {
        "sub-01/anat/sub-01": ("lesion", (1, 1, 2)),
        "sub-02/ses-1/anat/sub-02_ses-1": ("lesion", (2, 4, 7)),
        "sub-02/ses-2/anat/sub-02_ses-2": ("lesion", (2, 3, 6)),
        "sub-03/anat/sub-03": ("tumour", (0, 2, 4)),
    }
    masks = {
        f"{name}_space-{synthetic.SPACE}_label-{label}_mask": synthetic.box(corner, (2, 3, 3))
        for name, (label, corner) in names.items()
    }
    synthetic.write_dataset(place / "BIDS_DIR", masks)
    own = {f"sub-01/anat/sub-01_space-{synthetic.SPACE}_label-infarct_mask": synthetic.box((3, 4, 5))}
    synthetic.write_dataset(place / "BIDS_DIR" / "derivatives" / "masks", own)
    for name in ("dlpfc_mask", "efield_probseg"):
        path = place / "BIDS_DIR" / "sub-01" / "anat" / f"sub-01_space-{synthetic.SPACE}_label-{name}.nii.gz"
        synthetic.write_mask(path, synthetic.box((2, 3, 4)))
    # The filter selects this mask.
    tumour = next((place / "BIDS_DIR" / "sub-03").rglob("*.json"))
    tumour.write_text(json.dumps({"SpatialReference": synthetic.SPACE}))
    for subject, voxels in {"01": synthetic.box((1, 2, 3)), "02": 0 * synthetic.box((0, 0, 0))}.items():
        synthetic.write_mask(place / "masks" / f"sub-{subject}_lesion.nii.gz", voxels)
    for name in ("ATLAS", f"space-{synthetic.SPACE}_CIRCUIT", "LANGUAGE"):
        synthetic.write_mask(place / f"{name}.nii.gz", np.indices(synthetic.SHAPE)[0])
    (place / "ATLAS.tsv").write_text("index\tlabel\n1\tfirst\n2\tsecond\n")
    synthetic.write_mask(place / "map.nii.gz", np.ones(synthetic.SHAPE))
    brain = np.ones(synthetic.SHAPE, bool)
    synthetic.write_connectome_folder(place / "lacuna", synthetic.make_series(brain.size), brain)
    build = ["build", str(place / "lacuna"), str(place / "STORE"), "--space", synthetic.SPACE, "--name", "GSP1000"]
    assert cli.connectome_main([*build, "--nprocs", "1"]) == 0
    return place


@pytest.fixture
def place(made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change into a copy of the reader's data."""
    shutil.copytree(made_up, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    # A command with a work folder would set the cache folder of later tests.
    monkeypatch.setenv("NUMBA_CACHE_DIR", os.environ["NUMBA_CACHE_DIR"])
    return tmp_path / "place"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_all_blocks_of_a_page(page: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every block runs or is checked; no block is skipped."""
    if page.name == "README.md":
        # The README leads from a downloaded connectome to the maps: no store exists yet.
        shutil.rmtree("STORE")
        test_build.write_nifti(place / "GSP1000", synthetic.RADIOLOGICAL)
        synthetic.write_mask(place / "brain_mask.nii.gz", test_build.MASK)
    if page.name == "spaces.md":
        synthetic.write_dataset(place / "derivatives" / "fmriprep", {})
    reader = Reader(page)
    for block in read_blocks(page):
        language = block.language.split()[0]
        assert language in LANGUAGES, f"{page.name}: no handler for {language}: add one to LANGUAGES"
        LANGUAGES[language](reader, block)
    if page.name == "README.md":
        kinds = {path.name for path in Path("maps").iterdir()}
        assert kinds == {f"sub-01_{kind}.nii.gz" for kind in ("rmap", "tmap", "binary")}
        assert "sub-02_lesion.nii.gz failed: the mask is empty" in capsys.readouterr().out
    if page.name == "python.md":
        maps = nib.load("maps/sub-01_rmap.nii.gz")
        np.testing.assert_allclose(reader.names["mean"].get_fdata(), maps.get_fdata(), atol=1e-6)
        assert reader.names["failed"] == ["sub-02_lesion.nii.gz"]


def test_every_layouts_command_finds_the_subjects(place: Path) -> None:
    """Each command in the table of layouts opens a source with five subjects.

    The tests of the builds check that each of these layouts makes the same store.
    """
    shutil.rmtree("lacuna")
    page = (DOCS / "howto" / "connectome.md").read_text()
    rows = re.findall(r"^\| (.*) \| `(.* STORE .*)` \|$", page, re.MULTILINE)
    writers = (
        test_build.write_hdf5,
        test_build.write_nifti,
        test_build.write_nifti,
        test_build.write_bids,
        test_build.write_bids,
        test_build.write_leaddbs,
        test_build.write_npy,
    )
    synthetic.write_mask(place / "brain_mask.nii.gz", test_build.MASK)
    for (_, command), write in zip(rows, writers, strict=True):
        words = shlex.split(command.replace("2009cAsym", "6Asym").replace("sub-*/*_bold", "*/*/*_rest_*"))
        arguments = parse("bids-lacuna-connectome", ["build", *words])
        arguments.source.parent.mkdir(exist_ok=True)
        write(arguments.source, synthetic.RADIOLOGICAL)
        source = connectome_app.open_source(arguments)
        assert len(source.subjects) == 5
        assert source.read(source.subjects[0])


def test_pages_of_the_reference_have_no_code_of_their_own() -> None:
    """Pages in reStructuredText contain no code blocks, which would not be tested."""
    for page in DOCS.rglob("*.rst"):
        text = page.read_text()
        assert not re.search(r"code-block|literalinclude|^(?! *\.\. ).*::$", text, re.MULTILINE), page.name


def test_the_options_that_pages_name_exist() -> None:
    """Each option in README and documentation belongs to our programs or to a listed other program."""
    ours = {
        option
        for build in (options.build_parser, connectome_options.build_parser)
        for option in option_strings(build())
    }
    for page in PAGES:
        prose = BLOCK.sub("", page.read_text())
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", prose))
        assert named <= ours | set(OF_OTHER_PROGRAMS), page.name


def test_the_architecture_names_files_and_objects_that_exist() -> None:
    """Each path in the page on the architecture exists, and each name occurs in the code."""
    text = (DOCS / "architecture.md").read_text()
    package = ROOT / "bids_lacuna"
    for path in re.findall(r"`((?:[\w.]+/)*(?:[\w.]+/|\w+\.py|(?<=/)[\w.]+))`", text):
        assert (ROOT / path).exists() or any(package.rglob(path)), path
    code = "\n".join(file.read_text() for folder in (package, ROOT / "tests") for file in folder.rglob("*.py"))
    words = set(re.findall(r"\w+", code))
    for name in re.findall(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?`", text):
        if not name.endswith((".py", ".md", ".json", ".tsv", ".toml")):
            assert name.rpartition(".")[2] in words, name


def option_strings(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield all options of a parser and its subcommands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from option_strings(command)
