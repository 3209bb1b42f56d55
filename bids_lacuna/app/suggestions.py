"""Which option an unknown one may stand for: by its meaning first, then by its spelling."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher

SAME_MEANING = {
    "participant-label": ("participant", "participants", "subject", "subjects", "subject-id", "subject-label", "sub"),
    "session-label": ("session", "sessions", "session-id", "ses"),
    "nprocs": ("threads", "nthreads", "n-threads", "omp-nthreads", "jobs", "n-jobs", "ncpus", "cores", "n-cores"),
    "mem": ("memory", "memory-gb", "mem-gb", "mem-mb", "max-memory"),
    "overwrite": ("force", "clobber", "rerun"),
    "work-dir": ("scratch", "scratch-dir", "tmp-dir", "temp-dir"),
    "permutations": ("n-perm", "nperm", "n-permutations"),
    "covariates": ("confounds", "nuisance"),
    "dask-workers": ("n-workers", "nworkers"),
    "space": ("connectome-space",),
    "name": ("connectome-name",),
}
"""Other programs' words for options."""

OPPOSITE = {"no", "null"}
"""Words that turn the rest of a name into something else."""

SAME_WORD = 0.8
"""Smallest similarity, from 0 to 1, of two spellings of one word."""


def suggest_option(unknown: str, known: Iterable[str]) -> str:
    """Suggest the option that has an unknown one's meaning or is spelt almost alike, as in ": did you mean --mem?".

    Parameters
    ----------
    unknown, known
        Long names of options, with or without their hyphens.

    Returns
    -------
    str
        Empty if there is none: words that merely have letters in common mean something else.
    """
    options = {option.lstrip("-"): option for option in known}
    name = unknown.lstrip("-").lower().replace("_", "-")
    of_meaning = (option for option, others in SAME_MEANING.items() if name in others)
    near = [option for option in of_meaning if option in options]
    near = near or [option for option in options if _letters(option) == _letters(name)]
    near = near or [option for option in options if _is_misspelt(name, option)]
    near = near or _with_all_words(name, options)
    return f": did you mean {options[near[0]]}?" if near else ""


def _letters(name: str) -> str:
    return re.sub("[-_]", "", name)


def _words(name: str) -> list[str]:
    return re.split("[-_]", name)


def _is_misspelt(name: str, option: str) -> bool:
    """Return whether all words of two names are the same but for their spelling; one letter has no spelling."""
    if len(_words(name)) != len(_words(option)):
        return False
    pairs = zip(_words(name), _words(option), strict=True)
    return all(SequenceMatcher(None, *pair).ratio() >= SAME_WORD for pair in pairs)


def _with_all_words(name: str, options: Iterable[str]) -> list[str]:
    """Return the one option that has all words of a name; those of the opposite, or several, are no answer."""
    words = set(_words(name))
    found = [
        option for option in options if words < set(_words(option)) and not OPPOSITE & set(_words(option)) - words
    ]
    return found if len(found) == 1 else []
