"""The trees of the ILD and MRNet formats, of one hospital or of several side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from client.check.found import Found, Owner, SettingsOf, Unit, keeps, sources, walk
from common.config import MRNET_LABELS, IldData, Study
from common.data.ild import TREES, IldReader
from common.data.ild.masks import CODES, masks_among
from common.data.ild.text import read_texts
from common.data.ild.tree import LUNGS, PATCHES, TEXTS, files_by_patient
from common.data.mrnet import PARTS, MrnetReader
from common.data.mrnet import TREE as MRNET_TREE
from common.data.readers import build_reader
from common.errors import BadData

ILD_TREES = (*TREES.values(), LUNGS)


def hospitals(data: Path, names: Sequence[str]) -> list[tuple[str, Path]]:
    """The folders that hold trees of these names, each with its site: `data`, or one a site."""
    if data.name in names or any((data / name).is_dir() for name in names):
        return [("", data)]
    folders = sorted({path.parent for name in names for path in data.glob(f"*/{name}")})
    return [(folder.name, folder) for folder in folders]


def is_ild(data: Path) -> bool:
    """Whether a folder holds trees of the ILD format, or is one."""
    return bool(hospitals(data, ILD_TREES))


def is_mrnet(data: Path) -> bool:
    """Whether a folder holds MRNet's tree, or is one."""
    return bool(hospitals(data, [MRNET_TREE]) or _label_files(data))


def find_ild(data: Path, study: Study | None, settings_of: SettingsOf) -> Found:
    """Every kind of annotation that is there, or the one that the study reads."""
    config = None if study is None else cast("IldData", study.data)
    owners: dict[Path, Owner] = {}
    units: list[Unit] = []
    masks: list[Path] = []
    problems: list[str] = []
    strange: dict[str, list[Path]] = defaultdict(list)
    for site, root in hospitals(data, ILD_TREES):
        settings = settings_of(site)
        known = {*CODES, *settings.labels, *(study.classes if study else ())}
        wanted = [TREES[config.regions], *[LUNGS] * config.lung_mask] if config else ILD_TREES
        trees = {name: tree for name in wanted if (tree := _tree(root, name)).is_dir()}
        for name, tree in trees.items():
            for patient, files in _by_patient(name, tree, problems).items():
                if keeps(settings, patient, site):
                    images = [path for path in files if path.suffix.lower() != ".txt"]
                    owners |= dict.fromkeys(images, Owner(patient, site, part=name))
                    for said, text in _labels_in(files if name == TEXTS else ()):
                        if _singular(said) not in map(_singular, known):
                            strange[said].append(text)
                    masks += [*masks_among(files, "roi_mask"), *masks_among(files, "lung_mask")]
        several = len(set(TREES.values()) & set(trees)) > 1
        for regions, name in TREES.items():
            if name not in trees:
                continue
            if study is not None:
                reader, classes = build_reader(study, settings), study.classes
            else:
                labels = tuple(sorted(settings.labels.items()))
                reader, classes = IldReader(regions=regions, labels=labels), CODES[1:]
            for source in sources(reader, root, classes, problems):
                shown = tuple(f"{regions}: {label}" for label in classes) if several else classes
                label = (shown[source.detail],) if isinstance(source.detail, int) else None
                owner = Owner(source.patient, site, label, name)
                if keeps(settings, source.patient, site):
                    units.append(Unit(reader, source, owner, shown))
                    if label is not None:  # a ready-made patch, which names its patient
                        owners[source.path] = owner
    return Found(
        "ild",
        data,
        owners,
        tuple(units),
        frozenset(masks),
        tuple(dict.fromkeys(problems)),
        strange={label: tuple(texts) for label, texts in sorted(strange.items())},
    )


def find_mrnet(data: Path, study: Study | None, settings_of: SettingsOf) -> Found:
    """All exams with the labels that there are files for, or that the study asks for."""
    owners: dict[Path, Owner] = {}
    units: list[Unit] = []
    problems: list[str] = []
    for site, root in hospitals(data, [MRNET_TREE]) or [("", data)]:
        settings = settings_of(site)
        tree = _tree(root, MRNET_TREE) if (root / MRNET_TREE).is_dir() else root
        found = _label_files(tree)
        classes = tuple(found) if study is None else study.classes
        reader = MrnetReader(crop_px=None) if study is None else build_reader(study, settings)
        for path in walk(tree):
            exam = path.stem.zfill(4)  # stands for the patient, whom the set doesn't name
            if path.suffix == ".npy" and keeps(settings, exam, site):
                owners[path] = Owner(exam, site)
        for source in sources(reader, root, classes, problems):
            bits = cast("tuple[int, ...]", source.detail)
            labels = tuple(name for name, bit in zip(classes, bits, strict=True) if bit)
            if keeps(settings, source.patient, site):
                owner = Owner(source.patient, site, labels)
                units.append(Unit(reader, source, owner, classes))
                owners |= dict.fromkeys(source.paths, owner)
    return Found("mrnet", data, owners, tuple(units), problems=tuple(problems))


def _tree(root: Path, name: str) -> Path:
    return root if root.name == name else root / name


def _by_patient(name: str, tree: Path, problems: list[str]) -> Mapping[str, Sequence[Path]]:
    if name == PATCHES:
        return {"": walk(tree)}  # in folders or not: the files' names tell
    try:
        return files_by_patient(tree)
    except BadData as problem:
        problems.append(str(problem))
        return {}


def _labels_in(files: Sequence[Path]) -> set[tuple[str, Path]]:
    """The labels of a patient's texts, each with its file; a reader tells what can't be read."""
    return {
        (contour.label, text.folder / text.name)
        for text in read_texts(files, [])
        for contours in text.by_number.values()
        for contour in contours
    }


def _singular(label: str) -> str:
    """As the reader compares labels."""
    return label.lower().removesuffix("s")


def _label_files(tree: Path) -> list[str]:
    """The labels that a tree has a table for, in MRNet's order."""
    return [
        label
        for label in MRNET_LABELS
        if any((tree / f"{part}-{label}.csv").is_file() for part, _ in PARTS)
    ]
