"""Transforms for masks in other spaces than the connectome's: given ones, fMRIPrep's and TemplateFlow's, chained."""

from __future__ import annotations

import argparse
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bids_lacuna import transforms
from bids_lacuna.app.command import Exit, ending
from bids_lacuna.bids import AnatomicalTransform, LesionMask, find_t1w_images, find_transforms, is_raw
from bids_lacuna.derivatives import LesionRecord
from bids_lacuna.grid import is_same_place
from bids_lacuna.images import open_image
from bids_lacuna.spaces import describe_ambiguity, is_ambiguous, is_own, spell
from bids_lacuna.text import format_bytes
from bids_lacuna.transforms import TransformChain, TransformFile, check_format
from bids_lacuna.transforms.templateflow import PAIRS, MissingTransform, find_between

logger = logging.getLogger(__name__)

RAW = "orig"
"""fMRIPrep's name for the space of the raw T1w image."""

OF_AN_IMAGE = ("acq", "ce", "rec", "run")
"""Entities that tell the T1w images of a session apart."""

BYTES_PER_FIELD = 5 * 2**27
"""Memory while a field of 1 mm is read: ITK keeps its parameters twice, in double precision."""


@dataclass(frozen=True)
class GivenTransform:
    """A transform from the command line."""

    source: str
    target: str
    pattern: str
    """Path, in which {sub} and {ses} stand for the labels of a mask."""

    @classmethod
    def parse(cls, text: str) -> GivenTransform:
        """Parse A:B=FILE, which the command line has checked."""
        spaces, _, pattern = text.partition("=")
        source, _, target = spaces.partition(":")
        return cls(spell(source), spell(target), pattern)

    @property
    def pair(self) -> tuple[str, str]:
        """Spaces between which it leads."""
        return self.source, self.target

    def of(self, mask: LesionMask) -> TransformFile:
        """Return the file for a mask; raises ValueError or OSError."""
        if "{ses}" in self.pattern and "ses" not in mask.entities:
            raise ValueError(
                f"the path {self.pattern} has {{ses}}, but the mask's name has no session: leave out {{ses}}"
            )
        filled = self.pattern.replace("{sub}", mask.entities["sub"]).replace("{ses}", mask.entities.get("ses", ""))
        path = Path(filled)
        check_format(path)
        return TransformFile(path, self.source, self.target)


@dataclass
class ChainFinder:
    """Finds the chain of each mask; called by `decide`."""

    space: str
    """Template of the connectome."""
    datasets: Mapping[str, Path]
    participants: Sequence[str] = ()
    given: Sequence[GivenTransform] = ()
    download: bool = True
    """Whether TemplateFlow's client may download a file."""
    passed: set[tuple[str, str]] = field(default_factory=set)
    """Steps of all chains so far."""
    _between: dict[tuple[str, str], TransformFile | str] = field(default_factory=dict)
    _t1w_images: dict[str, dict[tuple[str, str | None], list[Path]]] = field(default_factory=dict)
    """T1w images of each dataset that has been asked for them."""

    def __call__(self, mask: LesionMask) -> TransformChain | None:
        """Return the chain of a mask in another space; None if nothing leads from its template to the connectome's.

        Raises
        ------
        ValueError, OSError
            The mask's space is unclear, several files fit, or one that is needed is missing.
        """
        start = self._start(mask)
        steps = self._steps(mask, start)
        route = _shortest(steps, start, self.space)
        if route is None:
            if is_own(start):
                raise ValueError(self._describe_missing(mask, start, steps))
            return None
        self.passed.update(route)
        files = [file for step in route if (file := self._resolve(step, steps[step], mask.path.name))]
        return TransformChain(tuple(_relabel(files, start)))

    def of_template(self, space: str) -> TransformChain | None:
        """Return the chain of an image of no participant, such as an atlas; None in the connectome's own space.

        Raises
        ------
        ValueError
            Its space is no template's, or no transform leads from there to the connectome's.
        """
        if space == self.space:
            return None
        if is_ambiguous(space):
            raise ValueError(f"{describe_ambiguity(space)}: name the file by its template")
        if is_own(space):
            raise ValueError(f"{space} is a participant's own space: an image in a template's space is needed")
        steps: dict[tuple[str, str], list[TransformFile | None]] = {pair: [] for pair in PAIRS}
        for given in self.given:
            if not is_own(given.source) and "{" not in given.pattern:
                steps[given.source, given.target] = [TransformFile(Path(given.pattern), given.source, given.target)]
        route = _shortest(steps, space, self.space)
        if route is None:
            raise ValueError(
                f"it is in space {space}, and no transform leads from there to the connectome's {self.space}: give "
                f"--transform {space}:{self.space}=FILE, or an image in {self.space}"
            )
        self.passed.update(route)
        files = [file for step in route if (file := self._resolve(step, steps[step], f"an image in {space}"))]
        return TransformChain(tuple(files))

    @cached_property
    def anatomical(self) -> list[AnatomicalTransform]:
        """FMRIPrep's transforms in all datasets."""
        return find_transforms(self.datasets, self.participants)

    def _start(self, mask: LesionMask) -> str:
        """Return the space in which a mask's chain begins."""
        if mask.space is None:
            if is_raw(mask.dataset_path) and mask.path.parent.name == "anat":
                return RAW
            raise ValueError(
                f"its name has no space, and it lies in {mask.path.parent}, not in anat/ of a raw dataset: name it "
                f"space-T1w (fMRIPrep's T1w), space-{RAW} (the raw T1w) or by its template, or set SpatialReference "
                "in its sidecar"
            )
        if not mask.space.isalnum():
            raise ValueError(
                f"its space is {mask.space}, but a name is needed: set SpatialReference in its sidecar to T1w "
                f"(fMRIPrep's T1w), {RAW} (the raw T1w) or its template"
            )
        if is_ambiguous(mask.space):
            raise ValueError(f"{describe_ambiguity(mask.space)}: name the mask by its template")
        return spell(mask.space) if is_own(mask.space) else mask.space

    def _steps(self, mask: LesionMask, start: str) -> dict[tuple[str, str], list[TransformFile | None]]:
        """Return all known steps for a mask with the files that fit; none is read. None: nothing to transform."""
        steps: dict[tuple[str, str], list[TransformFile | None]] = {}
        for pair in PAIRS:
            steps[pair] = []
        replaced = {each.source for each in self.given}
        fitting = [each for each in self.anatomical if _fits(each, mask)] if is_own(start) else []
        fitting = [each for each in fitting if each.file.source not in replaced]
        for each in fitting:
            steps.setdefault((each.file.source, each.file.target), []).append(each.file)
        to_t1w = (RAW, "T1w")
        if start == RAW and RAW not in replaced:
            if len(steps.get(to_t1w, [])) > 1:
                steps[to_t1w] = [each.file for each in fitting if _is_of_image(each, mask, to_t1w)] or steps[to_t1w]
            if to_t1w not in steps and not self._why_not_same(mask):
                steps[to_t1w] = [None]
        for given in self.given:
            steps[given.source, given.target] = [given.of(mask)] if _reaches(given, start, self.given) else []
        return {pair: files for pair, files in steps.items() if files or pair in PAIRS}

    def _resolve(
        self, step: tuple[str, str], files: Sequence[TransformFile | None], name: str
    ) -> TransformFile | None:
        """Return the one file of a step; None where there is nothing to transform."""
        if len(files) > 1:
            names = " and ".join(str(file.path) for file in files if file)
            raise ValueError(
                f"{len(files)} transforms fit {name}, from {step[0]} to {step[1]}: {names}: name one by "
                f"--transform {step[0]}:{step[1]}=FILE, or leave out a dataset"
            )
        if files:
            return files[0]
        if step not in self._between:
            try:
                self._between[step] = find_between(*step, download=self.download)
            except MissingTransform as error:
                self._between[step] = str(error)
        found = self._between[step]
        if isinstance(found, str):
            raise ValueError(found)  # noqa: TRY004  a file is missing
        return found

    def _why_not_same(self, mask: LesionMask) -> str:
        """Describe why a mask on the raw T1w may not lie on fMRIPrep's; empty if it does."""
        if any(each.file.source == RAW and each.entities["sub"] == mask.entities["sub"] for each in self.anatomical):
            return "fMRIPrep wrote from-orig_to-T1w for other T1w images only"
        of_sessions = self._find_t1w_images(mask)
        images = of_sessions.get(mask.entities.get("ses"), [])
        if len(images) != 1:
            return f"there are {len(images)} T1w images of its session in {mask.dataset_path}, not one"
        joined = [each.file.path.name for each in self.anatomical if _fits(each, mask) and "ses" not in each.entities]
        if joined and len(of_sessions) > 1:
            return f"{joined[0]} is of T1w images of {len(of_sessions)} sessions together"
        ours, theirs = open_image(mask.path, "mask"), open_image(images[0], "image")
        if ours.shape[:3] != theirs.shape[:3] or not is_same_place(ours.affine, theirs.affine):
            return f"its grid is not that of {images[0].name}"
        return ""

    def _find_t1w_images(self, mask: LesionMask) -> dict[str | None, list[Path]]:
        """Return the T1w images of a mask's participant in its own dataset, by session."""
        name = mask.dataset
        if name not in self._t1w_images:
            self._t1w_images[name] = find_t1w_images(name, mask.dataset_path, self.participants)
        found = self._t1w_images[name].items()
        return {session: paths for (sub, session), paths in found if sub == mask.entities["sub"]}

    def _describe_missing(
        self, mask: LesionMask, start: str, steps: Mapping[tuple[str, str], Sequence[TransformFile | None]]
    ) -> str:
        """Describe what was looked for, and what there was instead."""
        sub = mask.entities["sub"]
        there = [each.file.path.name for each in self.anatomical if each.entities["sub"] == sub]
        if start == RAW and (RAW, "T1w") not in steps:
            wanted = f"sub-{sub}_*from-orig_to-T1w_mode-image_xfm.txt; {self._why_not_same(mask)}"
        else:
            wanted = f"sub-{sub}_*from-T1w_to-{self.space}_mode-image_xfm.h5, or to a template with a transform to it"
        named = f"is in the participant's own space {mask.space}" if mask.space else "has no space in its name"
        folders = ", ".join(str(path) for path in self.datasets.values())
        there += [f"--transform {given.source}:{given.target}" for given in self.given]
        return (
            f"the lesion {named}, and no transform leads to the connectome's {self.space}: looked for {wanted}, in "
            f"{folders}; found {', '.join(there[:5]) or 'no transform of this participant'}: add fMRIPrep's "
            f"derivatives with -d fmriprep=PATH, or give --transform {start}:{self.space}=FILE"
        )


def find_chains(arguments: argparse.Namespace, datasets: Mapping[str, Path], space: str) -> ChainFinder:
    """Return what finds the chains of a command line's masks; stop if a given transform cannot be used."""
    given = list(dict.fromkeys(GivenTransform.parse(each) for each in arguments.transform))
    with ending(Exit.NO_INPUT, FileNotFoundError), ending(Exit.USAGE, ValueError):
        for each in given:
            _check_given(each, given)
    return ChainFinder(space, datasets, arguments.participant_label, given, not arguments.no_download)


def _check_given(each: GivenTransform, given: Sequence[GivenTransform]) -> None:
    """Raise ValueError or FileNotFoundError for a given transform that cannot be used, or contradicts another."""
    patterns = [other.pattern for other in given if other.pair == each.pair]
    if len(patterns) > 1:
        raise ValueError(f"--transform has {' and '.join(patterns)} from {each.source} to {each.target}: name one")
    if each.source == each.target:
        raise ValueError(f"--transform {each.source}:{each.target} leads nowhere: name two spaces")
    if unknown := set(re.findall(r"\{.*?\}", each.pattern)) - {"{sub}", "{ses}"}:
        raise ValueError(
            f"{each.pattern} has {', '.join(sorted(unknown))}: only {{sub}} and {{ses}} can be filled in"
        )
    if "{" not in each.pattern:
        check_format(Path(each.pattern))


def check_shared(given: Sequence[GivenTransform], records: Sequence[LesionRecord]) -> None:
    """Set aside the masks of several participants that would share one file from a space of each one's own."""
    for each in given:
        if not is_own(each.source) or "{sub}" in each.pattern:
            continue
        using = [
            record
            for record in records
            if record.transform and any(file.path == Path(each.pattern) for file in record.transform.files)
        ]
        if len({record.mask.entities["sub"] for record in using}) > 1:
            for record in using:
                record.transform = None
                record.set_aside(
                    "failed",
                    f"{each.source} is each participant's own space, but --transform names one file for several: "
                    "write {sub} in its path, as in "
                    f"--transform '{each.source}:{each.target}=transforms/sub-{{sub}}_xfm.h5', or choose one "
                    "participant with --participant-label",
                )


def log_chains(find_chain: ChainFinder, records: Sequence[LesionRecord]) -> None:
    """Log how many masks pass which spaces, and warn of given transforms that nothing passes."""
    routes = Counter(
        (*(file.source for file in record.transform.files), record.transform.target)
        for record in records
        if record.transform
    )
    for route, n in routes.items():
        logger.info("masks brought from %s: %d", " to ".join(route), n)
    for given in find_chain.given:
        if given.pair not in find_chain.passed:
            logger.warning(
                "no mask or atlas passes --transform %s:%s: check the names of its spaces, and those of the "
                "masks and of the connectome (%s)",
                *given.pair,
                find_chain.space,
            )


def limit_threads(records: Sequence[LesionRecord], n_threads: int) -> None:
    """Apply transforms, if there are any, with so many threads."""
    if any(record.transform for record in records):
        transforms.resampling.use_threads(n_threads)


def memory_of_transforms(records: Sequence[LesionRecord]) -> int:
    """Return the bytes that the longest chain takes while a lesion is read: one lesion at a time."""
    chains = [record.transform for record in records if record.transform]
    fields = (sum(file.path.suffix in (".h5", ".gz", ".nii") for file in chain.files) for chain in chains)
    n_bytes = BYTES_PER_FIELD * max(fields, default=0)
    if n_bytes:
        logger.info("set aside for reading transforms: %s", format_bytes(n_bytes))
    return n_bytes


def _fits(transform: AnatomicalTransform, mask: LesionMask) -> bool:
    """Return whether a transform is of a mask's participant, and of its session or of all."""
    same = transform.entities["sub"] == mask.entities["sub"]
    session = mask.entities.get("ses")
    return same and (session is None or transform.entities.get("ses") in (None, session))


def _is_of_image(transform: AnatomicalTransform, mask: LesionMask, step: tuple[str, str]) -> bool:
    """Return whether a transform is that of the very T1w image on which a mask was drawn, by their names."""
    file = transform.file
    own = all(transform.entities.get(name) == mask.entities.get(name) for name in OF_AN_IMAGE)
    return (file.source, file.target) == step and own


def _reaches(given: GivenTransform, start: str, all_given: Sequence[GivenTransform]) -> bool:
    """Return whether a given transform may serve a mask: one from an own space serves only masks that come by it."""
    if not is_own(given.source) or given.source == start:
        return True
    return any(each.target == given.source and each.source == start for each in all_given) or start == RAW


def _relabel(files: Sequence[TransformFile], start: str) -> Iterator[TransformFile]:
    """Let a chain that begins with nothing to transform begin in the mask's space."""
    for number, file in enumerate(files):
        if number == 0 and file.source != start:
            yield TransformFile(file.path, start, file.target, file.software)
        else:
            yield file


def _shortest(
    steps: Mapping[tuple[str, str], Sequence[TransformFile | None]], start: str, end: str
) -> list[tuple[str, str]] | None:
    """Return the shortest way from one space to another; None if there is none, ValueError if there are several."""
    ways: list[list[tuple[str, str]]] = [[]]
    passed = {start}
    while ways:
        here = [(way, way[-1][1] if way else start) for way in ways]
        ways = [[*way, step] for way, place in here for step in steps if step[0] == place and step[1] not in passed]
        passed |= {way[-1][1] for way in ways}
        arrived = [way for way in ways if way[-1][1] == end]
        if len(arrived) > 1:
            words = " and ".join(" to ".join([start, *(step[1] for step in way)]) for way in arrived)
            raise ValueError(f"there are several ways from {start} to {end}: {words}: name one with --transform")
        if arrived:
            return arrived[0]
    return None
