"""study.yaml, site.yaml, federation.yaml as typed, frozen values; every key says what it is for.

Three owners, three files (DESIGN): the data scientist writes the study, the hospital the site, the
coordinator the federation. What is under `simulation` only says how one machine plays the sites, so
it is no part of the study's hash: a study that was simulated and then deployed keeps its hash.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from common.catalogue import CATALOGUE
from common.errors import BadInput
from common.plain_yaml import dump_yaml, load_yaml, read_yaml

T = TypeVar("T", bound=BaseModel)

MAX_DELTA = 1e-5
MIN_DELTA = 1e-12  # about what accountants can tell from 0 in double precision
# |w|. Trained weights are below 10; under the strongest noise that a small site plans, a thousand
# steps carry one of a million weights to some hundreds. Weights far beyond serve only whoever wants
# rounding or overflow to depend on a patient: up to here, five layers without any normalisation
# (each times 1e4 and a thousand inputs) still give finite float32.
LARGEST_WEIGHT = 1e4
MRNET_LABELS = ("abnormal", "acl", "meniscus")
CHANNELS = 1  # every image becomes one grey channel
SITE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"  # a site's name becomes a folder's name
SITE_NAME_RULE = "1 to 64 letters, digits, _, . or -, beginning with a letter or a digit"
_DEVICE = r"^(auto|cpu|cuda(:\d{1,2})?)$"
_CLASS_NAME = r"^\S(.*\S)?$"
_SHA256 = r"^[0-9a-f]{64}$"
_PORT = r"([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_ADDRESS = rf"^([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):{_PORT}$"
_NODE_KEY = r"^ecdsa-sha2-nistp384 [A-Za-z0-9+/=]+( .*)?$"


_HEALTH = "Port on 127.0.0.1 for health and numbers that Prometheus reads. Empty: none."


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Intensity(_Frozen):
    """A linear map of pixel values by public constants, never fitted on data.

    A window: `low` becomes -1, `high` +1. With `clip: false` nothing is clipped, which makes
    `low: mean - sd, high: mean + sd` the z-score of a public mean and standard deviation.
    """

    low: float = Field(0.0, description="Pixel value that becomes -1.")
    high: float = Field(255.0, description="Pixel value that becomes +1.")
    clip: bool = Field(True, description="Clip values outside; false: a z-score by public values.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high <= self.low:
            raise ValueError(f"a range whose high is above its low ({self.low}); got {self.high}")
        return self


Step = Literal["min-max", "equalize", "clahe", "median", "gaussian"]
_STEPS = (
    "Steps on each image by itself after the intensity map, in this order: min-max (of each plane "
    "to [-1, 1]), equalize (histogram), clahe, median (3x3), gaussian (sigma 1 px)."
)


class _Data(_Frozen):
    """What every kind of data set shares."""

    image_size_px: int = Field(
        32, ge=8, le=1024, description="Images are resized to this many pixels a side."
    )
    preprocessing: tuple[Step, ...] = Field((), description=_STEPS)
    folds: int | None = Field(
        None,
        ge=2,
        le=20,
        description=(
            "Cross-validation: each patient is tested once, by a model that never saw them; trains "
            "that many models. Empty: one split, one model."
        ),
    )
    test_share: float = Field(
        0.25, gt=0, lt=1, description="Share of the patients kept for testing (without folds)."
    )

    @property
    def split_shares(self) -> tuple[float, ...]:
        """Shares of a split's parts; fold k tests part k - 1, no folds tests part 0."""
        if self.folds is None:
            return (self.test_share, 1 - self.test_share)
        return (1 / self.folds,) * self.folds

    @property
    def train_share(self) -> float:
        """Expected share of the patients on the training side; public."""
        return 1 - self.split_shares[0]


class ManifestData(_Data):
    """A CSV beside the images: path,patient,site,label[,split][,any subgroup column].

    In a multi-label task there is a column of 0 and 1 for each class in place of `label`.
    """

    kind: Literal["manifest"] = Field("manifest", description="A CSV beside the images.")
    intensity: Intensity = Field(
        Intensity(), description="Pixel values that become -1 and +1 (8-bit images: 0 and 255)."
    )
    slices: int | None = Field(
        None,
        ge=2,
        le=512,
        description=(
            "Each path is a volume (a folder of DICOM slices, a multi-frame file, an .npy stack), "
            "resampled to this many slices. Empty: each path is one picture."
        ),
    )

    fit: ClassVar[Literal["resample"]] = "resample"

    @property
    def planes(self) -> int:
        """Volumes an image consists of; 0: images are pictures."""
        return 0 if self.slices is None else 1


class IldData(_Data):
    """The tree of the HUG interstitial lung disease format: CT slices and their annotations."""

    kind: Literal["ild"] = Field("ild", description="The tree of the HUG format.")
    intensity: Intensity = Field(
        Intensity(low=-1400.0, high=200.0), description="HU values that become -1 and +1."
    )
    regions: Literal["text", "masks", "patches"] = Field(
        "text",
        description=(
            "Where the labels are: text (polygons, ILD_DB_txtROIs), masks (label maps, "
            "ILD_DB_volumeROIs) or patches (ready-made ones, ILD_DB_talismanTestSuite)."
        ),
    )
    patch_size_px: int = Field(32, ge=8, le=256, description="Side of a patch, in slice pixels.")
    stride_px: int = Field(16, ge=1, le=256, description="Distance between patches.")
    min_share: float = Field(
        0.75, gt=0, le=1, description="Smallest share of a patch's pixels inside the region."
    )
    label_rule: Literal["one", "largest"] = Field(
        "one",
        description=(
            "A patch that touches regions of several labels: one leaves it out, largest gives it "
            "the label with most of its pixels."
        ),
    )
    random_shift_px: int = Field(
        0, ge=0, le=128, description="Each patch is moved by at most so many pixels each way."
    )
    pixel_spacing_mm: float | None = Field(
        None, gt=0, le=10, description="Slices are resampled to this spacing first. Empty: not."
    )
    lung_mask: bool = Field(
        False, description="Count only pixels inside the lung masks (ILD_DB_lungMasks)."
    )
    # Images are pictures.
    planes: ClassVar[int] = 0
    slices: ClassVar[None] = None
    fit: ClassVar[Literal["resample"]] = "resample"


Plane = Literal["axial", "coronal", "sagittal"]


class MrnetData(_Data):
    """The tree of the MRNet knee format: three volumes an exam, up to three labels, no sites."""

    kind: Literal["mrnet"] = Field("mrnet", description="The tree of the MRNet format.")
    image_size_px: int = Field(
        96, ge=8, le=512, description="Slices are resized to this many pixels a side."
    )
    intensity: Intensity = Field(
        Intensity(clip=False),  # a hospital's own export may have more than 8 bits
        description="Pixel values that become -1 and +1, before min-max.",
    )
    preprocessing: tuple[Step, ...] = Field(("min-max",), description=_STEPS)
    read_planes: tuple[Plane, ...] = Field(
        ("axial", "coronal", "sagittal"), min_length=1, description="Planes, in the model's order."
    )
    slices: int = Field(12, ge=2, le=128, description="Slices a plane.")
    fit: Literal["resample", "pad"] = Field(
        "resample",
        description=(
            "Volumes of other lengths: resample interpolates them to `slices`; pad keeps their own "
            "slices, fills up with empty ones that the model leaves out, and resamples only "
            "longer volumes."
        ),
    )
    crop_px: int | None = Field(
        224, ge=8, le=256, description="Slices are cut to this many pixels around their centre."
    )
    foreground_crop: bool = Field(
        False, description="Cut each volume to the box around its foreground (Otsu's threshold)."
    )
    official_split: bool = Field(
        False, description="Test on the data set's own `valid` exams, train on its `train` ones."
    )

    @property
    def planes(self) -> int:
        """Volumes an image consists of."""
        return len(self.read_planes)

    @field_validator("read_planes")
    @classmethod
    def _differ(cls, planes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(planes)) != len(planes):
            raise ValueError("planes that differ from one another")
        return planes


class ModelConfig(_Frozen):
    """Which network."""

    name: str = Field("cnn-small", description="One of those that `fedward models` lists.")
    patch_px: int | None = Field(
        None,
        ge=2,
        le=64,
        description="Side of a transformer's patches; empty: 8 below 128 px, else 16.",
    )
    pooling: Literal["max", "attention"] = Field(
        "max", description="How a volume's slices become one: their maximum, or learned weights."
    )


class Augmentation(_Frozen):
    """Random changes of each training image, from that image alone; 0 and empty are off."""

    rotation_deg: float = Field(0.0, ge=0, le=180, description="Turned by at most so much.")
    translation: float = Field(0.0, ge=0, le=0.5, description="Moved by at most this share.")
    scaling: float = Field(0.0, ge=0, le=0.5, description="Enlarged or shrunk by at most so much.")
    flips: tuple[Literal["horizontal", "vertical"], ...] = Field(
        (), description="Mirrored half of the time."
    )
    brightness: float = Field(0.0, ge=0, le=1, description="Added: at most so much, of [-1, 1].")
    contrast: float = Field(0.0, ge=0, lt=1, description="Multiplied by 1 - this to 1 + this.")
    noise: float = Field(0.0, ge=0, le=1, description="Standard deviation of Gaussian noise.")
    elastic_px: float = Field(0.0, ge=0, le=32, description="Largest elastic displacement.")
    cutout: float = Field(0.0, ge=0, le=0.9, description="Side of a blank square, as a share.")
    mixup: float = Field(
        0.0,
        ge=0,
        le=10,
        description=(
            "alpha of the mixture of two images and labels. Not with privacy: a mixed image holds "
            "two patients, so clipping per patient would bound neither."
        ),
    )


class Training(_Frozen):
    """Local training without privacy: shuffled batches and epochs of SGD."""

    rounds: int = Field(10, ge=1, le=100_000, description="Rounds of the federation.")
    epochs: int = Field(1, ge=1, le=1000, description="Local epochs a round.")
    batch_size: int = Field(32, ge=1, le=65_536, description="Images a step.")
    learning_rate: float = Field(0.05, gt=0, le=100, description="Step size of SGD.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD, zeroed each round.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="L2 penalty of SGD.")
    augmentation: Augmentation = Field(
        Augmentation(), description="Random changes of training images, with and without privacy."
    )


class Privacy(_Frozen):
    """Differential privacy: Poisson-sampled patients, clipped and noised steps of SGD."""

    enabled: bool = Field(False, description="Train under differential privacy.")
    unit: Literal["patient", "exam", "image"] = Field(
        "patient",
        description=(
            "Whose presence is hidden: all images of a patient together; exam only where the data "
            "don't say whose an exam is (MRNet). image hides single images, patients far less: the "
            "plan says how much less, and a site refuses it unless its policy allows it."
        ),
    )
    engine: Literal["fast", "opacus", "plain"] = Field(
        "fast",
        description=(
            "How gradients are clipped: fast (one backward pass), opacus (gradients by image), "
            "plain (one backward pass a patient, for any layer). The same up to rounding."
        ),
    )
    target_epsilon: float = Field(
        8.0,
        gt=0,
        le=1000,
        description=(
            "Epsilon of one model's whole training for each site's patients; with data.folds all "
            "models together cost more."
        ),
    )
    target_delta: float = Field(
        MAX_DELTA,
        gt=0,
        lt=1,
        description="Delta: at most 1e-5, and at most 1 / (10 x the site's declared patients).",
    )
    lifetime_epsilon: float | None = Field(
        None,
        gt=0,
        le=1000,
        description=(
            "No site charges a patient beyond this over all its studies; it can only lower the "
            "site's own cap. Empty: the site's own."
        ),
    )
    max_grad_norm: float = Field(
        1.0, ge=1e-3, le=1e6, description="C: each patient's gradient is clipped to this L2 norm."
    )
    sampling_rate: float = Field(
        0.25, gt=0, le=1, description="q: chance of each patient to be in a step; public."
    )
    steps_per_round: int = Field(4, ge=1, le=100_000, description="Noised steps a round; public.")
    images_per_patient: int = Field(
        16,
        ge=1,
        le=4096,
        description=(
            "At most this many images of a patient in one step (unit image: in the whole study)."
        ),
    )
    learning_rate: float = Field(0.5, gt=0, le=1000, description="Step size of private SGD.")
    momentum: float = Field(
        0.0, ge=0, lt=1, description="Momentum of private SGD, zeroed each round."
    )

    @field_validator("target_delta")
    @classmethod
    def _small_delta(cls, target_delta: float, info: ValidationInfo) -> float:
        if info.data.get("enabled") and target_delta > MAX_DELTA:
            raise ValueError(
                f"at most {MAX_DELTA:g}, since a delta near 1/patients allows publishing a whole "
                f"patient; got {target_delta:g}"
            )
        if info.data.get("enabled") and target_delta < MIN_DELTA:
            raise ValueError(
                f"at least {MIN_DELTA:g}, below which planning the noise takes for ever and "
                f"promises nothing that anybody could notice; got {target_delta:g}"
            )
        return target_delta


class StrategyConfig(_Frozen):
    """How the server combines the sites' weights."""

    name: Literal["fedavg"] = Field("fedavg", description="Federated averaging.")


Wire = Literal["float32", "bfloat16", "int8"]


class Federation(_Frozen):
    """The rules of a round."""

    min_sites: int = Field(
        1,
        ge=1,
        le=10_000,
        description="With fewer accepted replies a round waits for approval, or fails.",
    )
    round_timeout_s: float = Field(
        3600.0, gt=0, le=604_800, description="Seconds until a round closes without the missing."
    )
    weights: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = Field(
        {},
        description="Weight of a site in the average, agreed beforehand; 1 where none is given.",
    )
    wire: Wire = Field(
        "float32",
        description=(
            "How what sites have learnt travels: bfloat16 takes half the bytes, int8 a quarter, "
            "rounded by chance after the noise; what the server sends is always float32."
        ),
    )


Metric = Literal["loss", "accuracy", "balanced_accuracy", "macro_auroc"]


class Release(_Frozen):
    """What a site lets out besides weights."""

    metrics: tuple[Metric, ...] = Field(
        (), description="Metrics of the incoming model on the site's test patients; exact values."
    )
    counts: bool = Field(
        False, description="Numbers of patients and images, in the statement at the study's end."
    )


class Policy(_Frozen):
    """What a hospital agrees to; the server asks, this decides."""

    approval: Literal["manual", "automatic"] = Field(
        "manual",
        description=(
            "manual: a study trains once `fedward site approve` has named its hash; automatic: "
            "whatever keeps to the rest of this policy does."
        ),
    )
    privacy: Literal["required", "optional"] = Field(
        "required", description="Whether studies must train under differential privacy."
    )
    allow_without_privacy: tuple[Annotated[str, Field(pattern=_SHA256)], ...] = Field(
        (), description="Hashes of the studies that may do without, where privacy is required."
    )
    unit: Literal["patient", "exam", "image"] = Field(
        "patient",
        description=(
            "The weakest unit of privacy that is accepted: patient hides most, image least; exam "
            "is as good as patient where the data don't say whose an exam is."
        ),
    )
    min_patients: int = Field(
        10, ge=1, description="With fewer patients in the data, nothing is trained."
    )
    models: tuple[str, ...] | None = Field(
        None, description="Names of the models that may be trained; empty: all that are known."
    )
    max_message_mb: float = Field(
        1024.0, gt=0, le=16_384, description="Largest message in megabytes, either way."
    )
    studies_per_day: int = Field(
        10, ge=1, le=10_000, description="At most so many new studies within 24 hours."
    )
    whole_studies: Literal["required", "optional"] = Field(
        "required",
        description=(
            "required: a study begins only where the budget lasts for all its rounds; optional: it "
            "begins all the same, and the site leaves it when the budget ends."
        ),
    )

    @field_validator("models")
    @classmethod
    def _known(cls, models: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if unknown := [name for name in models or () if name not in CATALOGUE]:
            raise ValueError(
                f"names of models that are known here ({', '.join(CATALOGUE)}); got "
                f"{', '.join(unknown)}"
            )
        return models


class Budget(_Frozen):
    """What a site's patients may lose over all studies together."""

    epsilon: float = Field(
        10.0,
        gt=0,
        le=1000,
        description=(
            "Cap for the worst-off patient, over every study, data set and restart; by an RDP "
            "filter, which counts a little more than a study's own target."
        ),
    )
    delta: float = Field(
        MAX_DELTA, gt=0, le=MAX_DELTA, description="Delta of the cap; at most 1e-5."
    )


_COLUMNS = (
    "The site's own names of a manifest's columns: {patient: CaseID, label: finding}, ours first."
)
_LABELS = "The site's own names of the study's classes: {GGO: ground_glass}, theirs first."


class Link(_Frozen):
    """How a site reaches the coordinator's server; its own keys are in its state folder."""

    server: str = Field(
        "localhost:9092", pattern=_ADDRESS, description="The server, as host:port; TLS always."
    )
    authority: Path = Field(
        Path("ca.pem"), description="Certificate of the federation's authority (PEM)."
    )
    certificate: Path = Field(
        Path("site.pem"), description="The site's certificate, signed by that authority (PEM)."
    )
    coordinator: Path = Field(
        Path("coordinator.pem"),
        description="The coordinator's public key (Ed25519, PEM), which signs every instruction.",
    )
    heartbeat_s: float = Field(
        30.0, ge=1, le=100, description="Seconds between signs of life while the site is at work."
    )
    health_port: int | None = Field(None, ge=1, le=65_535, description=_HEALTH)


class SiteSettings(_Frozen):
    """One hospital: what site.yaml says (the parts that a simulation uses)."""

    name: str = Field("site", pattern=SITE_NAME, description="The site's name in the federation.")
    data: Path | None = Field(
        None,
        description="Where the images are: a manifest.csv, or the root of an ILD or MRNet tree.",
    )
    columns: dict[str, str] = Field({}, description=_COLUMNS)
    labels: dict[str, str] = Field({}, description=_LABELS)
    declared_patients: int | None = Field(
        None,
        ge=1,
        description=(
            "Number of patients the site declares, rounded; public. It gives the denominator of "
            "the private average and the largest delta."
        ),
    )
    declared_images: int | None = Field(
        None,
        ge=1,
        description="Number of images the site declares, rounded; public; only for unit image.",
    )
    exclude: tuple[str, ...] = Field((), description="Patients who object, as the data name them.")
    include: tuple[str, ...] | None = Field(
        None, description="Only these patients, as the data name them; null: all of the site's."
    )
    state: Path | None = Field(
        None, description="Where the ledger and all that must outlive a process are kept."
    )
    budget: Budget = Field(Budget(), description="What its patients may lose, in all.")
    policy: Policy = Field(Policy(), description="What it agrees to.")
    device: str = Field("auto", pattern=_DEVICE, description="auto, cpu, cuda or cuda:N.")
    release: Release = Field(Release(), description="What leaves besides weights.")
    randomness: Literal["secret", "seeded-for-testing"] = Field(
        "secret",
        description="Source of the privacy randomness; seeded gives no guarantee (simulation).",
    )
    link: Link | None = Field(
        None, description="How it reaches the server; needed by `fedward site run` alone."
    )

    def declared(self, unit: str) -> int | None:
        """The public number of units of privacy, of which the divisor is made."""
        return self.declared_images if unit == "image" else self.declared_patients


class SimulatedSite(_Frozen):
    """What a simulated hospital may set of its site.yaml."""

    declared_patients: int | None = Field(
        None, ge=1, description="Declared number of patients; from the data, rounded, if empty."
    )
    declared_images: int | None = Field(
        None, ge=1, description="Declared number of images; from the data, rounded, if empty."
    )
    budget: Budget = Field(Budget(), description="What its patients may lose, in all.")
    policy: Policy = Field(
        Policy(
            approval="automatic",
            privacy="optional",
            unit="image",
            min_patients=1,
            studies_per_day=10_000,
            whole_studies="optional",
        ),
        description="What it agrees to; nothing is at stake here, so to all if not said.",
    )
    exclude: tuple[str, ...] = Field((), description="Patients who object, as the data name them.")
    columns: dict[str, str] = Field({}, description=_COLUMNS)
    labels: dict[str, str] = Field({}, description=_LABELS)
    device: str = Field("auto", pattern=_DEVICE, description="auto, cpu, cuda or cuda:N.")
    release: Release = Field(
        Release(metrics=("loss", "accuracy")), description="What leaves besides weights."
    )
    withdraws_before_round: int | None = Field(
        None,
        ge=1,
        description=(
            "Its steward withdraws it from the study before this round (with folds: of the first "
            "model), for good. Empty: never."
        ),
    )
    absent_rounds: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="Rounds in which the server can't reach it; the one after the last too."
    )


def _as_set(site: SimulatedSite) -> dict[str, Any]:
    """Only what a site's own lines say: the rest stays with site_defaults."""
    return site.model_dump(mode="json", exclude_unset=True)


class IldPhantomConfig(_Frozen):
    """Generated lung CT, written in the ILD format and read back."""

    kind: Literal["ild"] = Field("ild", description="Lung CT with five tissue patterns.")
    patients: int = Field(110, ge=1, le=100_000, description="Patients over all hospitals.")
    hospitals: int = Field(5, ge=1, le=1000, description="Number of hospitals.")
    seed: int = Field(0, ge=0, description="Another seed, other patients.")
    shift: float = Field(
        1.0, ge=0, le=2, description="How much the hospitals differ; 0: exchangeable."
    )
    equal_sizes: bool = Field(False, description="The same number of patients everywhere.")
    label_noise: float = Field(
        0.0, ge=0, le=0.05, description="Share of the regions with a wrong label."
    )


class MrnetPhantomConfig(_Frozen):
    """Generated knee MRI, written in the MRNet format and read back."""

    kind: Literal["mrnet"] = Field("mrnet", description="Knee MRI with three labels.")
    exams: int = Field(1250, ge=2, le=100_000, description="Exams over all hospitals.")
    hospitals: int = Field(5, ge=1, le=1000, description="Number of hospitals.")
    seed: int = Field(0, ge=0, description="Another seed, other exams.")
    shift: float = Field(
        1.0, ge=0, le=2, description="How much the hospitals differ; 0: exchangeable."
    )
    equal_sizes: bool = Field(False, description="The same number of exams everywhere.")
    label_noise: float = Field(
        0.0, ge=0, le=0.05, description="Share of the labels that are wrong."
    )


class PartitionConfig(_Frozen):
    """How one data set without sites, or with others, is divided among simulated hospitals."""

    by: Literal["column", "labels", "quantity", "feature", "manufacturer"] = Field(
        "labels",
        description=(
            "column (of a manifest), labels (Dirichlet skew of the classes), quantity (Dirichlet "
            "skew of the sizes), feature (similar noise and brightness together, as from one "
            "scanner) or manufacturer (DICOM)."
        ),
    )
    column: str | None = Field(None, description="The column, with `by: column`.")
    sites: int = Field(5, ge=1, le=1000, description="Number of sites; the data give it for some.")
    alpha: float = Field(
        0.5, gt=0, le=1000, description="Dirichlet's concentration: the smaller, the more skew."
    )
    min_patients: int = Field(5, ge=1, description="Every site gets at least so many patients.")
    seed: int = Field(0, ge=0, description="Another seed, another division.")

    @model_validator(mode="after")
    def _column_named(self) -> Self:
        if (self.by == "column") != (self.column is not None):
            raise ValueError("a group with `column` if, and only if, `by` is column")
        return self


class Simulation(_Frozen):
    """How one machine plays the sites; no part of the study's hash."""

    data: Path | None = Field(
        None,
        description=(
            "Where all sites' images are: a manifest.csv with a site column, or a folder with one "
            "ILD or MRNet tree a hospital. Relative to the study's file."
        ),
    )
    phantom: (
        Annotated[IldPhantomConfig | MrnetPhantomConfig, Field(discriminator="kind")] | None
    ) = Field(None, description="Generate the data instead of reading them.")
    partition: PartitionConfig | None = Field(
        None, description="Divide the data among simulated sites anew. Empty: the data's own sites."
    )
    site_defaults: SimulatedSite = Field(SimulatedSite(), description="Settings of every site.")
    sites: dict[
        Annotated[str, Field(pattern=SITE_NAME)],
        Annotated[SimulatedSite, PlainSerializer(_as_set)],
    ] = Field({}, description="Settings of one site, by its name; they override site_defaults.")

    def site(self, name: str) -> SimulatedSite:
        """The settings of the simulated site `name`: its own over the defaults."""
        own, default = self.sites.get(name, SimulatedSite()), self.site_defaults
        said = {key: getattr(own, key) for key in own.model_fields_set}
        for group in said.keys() & {"budget", "policy"}:  # one line of it leaves the others
            lines = {key: getattr(said[group], key) for key in said[group].model_fields_set}
            said[group] = getattr(default, group).model_copy(update=lines)
        return default.model_copy(update=said)


class Study(_Frozen):
    """All that a study fixes before its first round; hashed without `simulation`."""

    format: Literal[1] = Field(1, description="Version of this file's format.")
    name: str = Field("study", pattern=SITE_NAME, description="A short name, used for folders.")
    task: Literal["multi-class", "multi-label"] = Field(
        "multi-class",
        description="multi-class: an image has one of the classes; multi-label: any of them.",
    )
    classes: tuple[Annotated[str, Field(pattern=_CLASS_NAME)], ...] = Field(
        ..., min_length=1, description="The classes in the order of the model's outputs."
    )
    seed: int = Field(
        1, ge=0, lt=2**63, description="Drives what is public: initial weights, order, splits."
    )
    data: Annotated[ManifestData | IldData | MrnetData, Field(discriminator="kind")] = Field(
        ..., description="The data set's format and how an image becomes the model's input."
    )
    model: ModelConfig = Field(ModelConfig(), description="The network.")
    training: Training = Field(Training(), description="Rounds, and training without privacy.")
    privacy: Privacy = Field(Privacy(), description="Differential privacy.")
    strategy: StrategyConfig = Field(StrategyConfig(), description="The server's rule.")
    federation: Federation = Field(Federation(), description="The rules of a round.")
    simulation: Simulation = Field(Simulation(), description="How one machine plays the sites.")

    @field_validator("classes")
    @classmethod
    def _enough(cls, classes: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if len(classes) < 2 and info.data.get("task") == "multi-class":
            raise ValueError("a list of at least 2 (or set `task: multi-label`); got a list of 1")
        if len(set(classes)) != len(classes):
            raise ValueError("names that differ from one another")
        return classes

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """What one key asks of another; each problem is a whole sentence."""
        if self.data.kind == "ild" and self.task != "multi-class":
            raise ValueError("`task` must be multi-class, since data.kind is ild")
        if self.data.kind == "mrnet" and self.task != "multi-label":
            raise ValueError("`task` must be multi-label, since data.kind is mrnet")
        unknown = sorted(set(self.classes) - set(MRNET_LABELS))
        if self.data.kind == "mrnet" and unknown:
            raise ValueError(
                f"`classes` must be out of {', '.join(MRNET_LABELS)}, since data.kind is mrnet; "
                f"got {', '.join(unknown)}"
            )
        if not self.privacy.enabled:
            return self
        if self.privacy.unit != self.unit and (self.privacy.unit, self.unit) != (
            "image",
            "patient",
        ):
            says = (
                "doesn't say whose an exam is" if self.unit == "exam" else "says whose images are"
            )
            raise ValueError(
                f"`privacy.unit` must be {self.unit}, since data.kind is {self.data.kind}, which "
                f"{says}"
            )
        if self.training.augmentation.mixup:
            raise ValueError(
                "`training.augmentation.mixup` must be 0 under privacy, since a mixed image holds "
                "two patients, so that clipping would bound neither"
            )
        return self

    @property
    def unit(self) -> Literal["patient", "exam"]:
        """What is counted, resampled and hidden: exams where the data don't say whose they are."""
        return "exam" if self.data.kind == "mrnet" else "patient"

    def canonical(self) -> str:
        """The study as the sites get it: canonical JSON without `simulation`."""
        content = self.model_dump(mode="json", exclude={"simulation"})
        if self.federation.wire == "float32":  # studies from before there was a choice keep theirs
            del content["federation"]["wire"]
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    @property
    def sha256(self) -> str:
        """Hash of everything that the study fixes, hexadecimal."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


class FederatedSite(_Frozen):
    """One hospital, as the coordinator knows it."""

    node_key: str | None = Field(
        None,
        pattern=_NODE_KEY,
        description=(
            "Its public node key (P-384) in OpenSSH's form, which `fedward federation sign` "
            "writes. Empty: not enrolled yet."
        ),
    )
    receipts_key: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description=(
            "Its public key (Ed25519, hexadecimal), with which it signs receipts and statements; "
            "written with the node key. Empty: nobody knows whose a statement is."
        ),
    )
    revoked: bool = Field(False, description="true shuts it out, also of a server that runs.")
    # A list, since `sites` has been through Python (see `_named_alone`), which has no strict tuple.
    revoked_keys: list[Annotated[str, Field(pattern=_NODE_KEY)]] = Field(
        [], description="Node keys that it had before and that never come back."
    )


class FederationFile(_Frozen):
    """federation.yaml: what the coordinator decides; paths are relative to the file."""

    format: Literal[1] = Field(1, description="Version of this file's format.")
    name: str = Field("federation", pattern=SITE_NAME, description="The federation's name.")
    server: str = Field(
        "localhost:9092",
        pattern=_ADDRESS,
        description="Where the sites find the server, as host:port; the certificate is for host.",
    )
    listen: str = Field(
        "0.0.0.0:9092", pattern=_ADDRESS, description="The address and port it listens on."
    )
    authority: Path = Field(
        Path("ca.pem"), description="Certificate of the authority that signs the sites' ones."
    )
    certificate: Path = Field(Path("server.pem"), description="The server's certificate.")
    certificate_key: Path = Field(Path("server.key"), description="Its private key.")
    coordinator_key: Path = Field(
        Path("coordinator.key"), description="The private key that signs instructions (Ed25519)."
    )
    wait_for_sites_s: float = Field(
        3600.0,
        gt=0,
        le=604_800,
        description="Seconds to wait for the study's min_sites to call, and again to approve it.",
    )
    offline_after_s: float = Field(
        300.0,
        gt=0,
        le=86_400,
        description=(
            "A site that was silent for so long is left out of a round until it is heard again; "
            "several of the sites' heartbeats."
        ),
    )
    health_port: int | None = Field(None, ge=1, le=65_535, description=_HEALTH)
    sites: dict[Annotated[str, Field(pattern=SITE_NAME)], FederatedSite] = Field(
        {}, description="The hospitals, by name."
    )

    @field_validator("sites", mode="before")
    @classmethod
    def _named_alone(cls, sites: object) -> object:
        """A site that isn't enrolled yet has nothing but its name."""
        if not isinstance(sites, dict):
            return sites
        return {name: {} if site is None else site for name, site in sites.items()}

    @model_validator(mode="after")
    def _each_its_own(self) -> Self:
        keys = [site.node_key.split()[1] for site in self.sites.values() if site.node_key]
        if len(set(keys)) < len(keys):
            raise ValueError("`sites` must have a node key each; two of them share one")
        return self

    @property
    def enrolled(self) -> dict[str, str]:
        """The node keys, by name, of the sites that may come in."""
        return {
            name: site.node_key
            for name, site in self.sites.items()
            if site.node_key is not None and not site.revoked
        }


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file, with `KEY=VALUE` overrides applied.

    Args:
        path: a YAML file; relative data paths inside it are relative to its folder.
        overrides: `privacy.target_epsilon=3` and the like; the value is YAML.

    Raises:
        BadInput: with every problem of the file, each naming the key and the remedy.
    """
    content = read_yaml(path)
    _apply(content, overrides)
    where = f"{path.name} and the command line" if overrides else path.name
    study = parse(Study, content, where=where)
    located = study.simulation.model_copy(update={"data": _beside(path, study.simulation.data)})
    return study.model_copy(update={"simulation": located})


def is_study(path: Path) -> bool:
    """Whether a YAML file is a study (only a study names `classes`) rather than a site.yaml."""
    return "classes" in read_yaml(path)


_SITE_PATHS = ("data", "state")
_LINK_PATHS = ("authority", "certificate", "coordinator")
_FEDERATION_PATHS = ("authority", "certificate", "certificate_key", "coordinator_key")


def load_site(path: Path) -> SiteSettings:
    """Read a site.yaml; raises BadInput with every problem."""
    site = parse(SiteSettings, read_yaml(path), where=path.name)
    located: dict[str, Any] = {name: _beside(path, getattr(site, name)) for name in _SITE_PATHS}
    if site.link is not None:
        files = {name: _beside(path, getattr(site.link, name)) for name in _LINK_PATHS}
        located["link"] = site.link.model_copy(update=files)
    return site.model_copy(update=located)


def load_federation(path: Path) -> FederationFile:
    """Read a federation.yaml; raises BadInput with every problem."""
    federation = parse(FederationFile, read_yaml(path), where=path.name)
    files = {name: _beside(path, getattr(federation, name)) for name in _FEDERATION_PATHS}
    return federation.model_copy(update=files)


def parse(schema: type[T], content: Mapping[str, Any], *, where: str) -> T:
    """`content` as a typed value; raises BadInput with every problem at once, one a line.

    Types are strict: a quoted number is text, and `yes` is no number.
    """
    return parse_json(schema, json.dumps(content, default=str), where=where)


def parse_json(schema: type[T], text: str, *, where: str) -> T:
    """JSON text as a typed value; raises BadInput with every problem at once, one a line."""
    try:
        return schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        inner = {loc[:end] for loc in (p["loc"] for p in problems) for end in range(len(loc))}
        sentences = [_sentence(schema, p, where) for p in problems if p["loc"] not in inner]
        raise BadInput("\n".join(dict.fromkeys(sentences))) from None


def to_yaml(value: BaseModel) -> str:
    """A typed value as a YAML file, every key written out."""
    return dump_yaml(value.model_dump(mode="json"))


def schema_yaml(schema: type[BaseModel]) -> str:
    """A file ready to edit: every key with its default and a sentence."""
    return "\n".join(_commented(schema, None, pad="")) + "\n"


def _beside(file: Path, data: Path | None) -> Path | None:
    """A path that a file names, from anywhere: it is relative to that file."""
    return None if data is None else (file.parent / data).absolute()


def _apply(content: dict[str, Any], overrides: Sequence[str]) -> None:
    for override in overrides:
        key, equals, text = override.partition("=")
        *parents, last = key.strip().split(".")
        if not equals or not all([*parents, last]):
            raise BadInput(f"--set needs KEY=VALUE, such as training.rounds=5; got {override!r}.")
        place = content
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                raise BadInput(f"--set {key}: {parent} is no group of keys; see `fedward schema`.")
        place[last] = load_yaml(text, where=f"--set {key}")


# What a problem's type asks for, where pydantic's own words would not help.
_WANTED = {
    "bool_type": "true or false",
    "dict_type": "a group of keys",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "model_type": "a group of keys",
    "string_type": "text (put quotes around it)",
    "tuple_type": "a list such as [a, b]",
}
_WANTED_PATTERN = {
    SITE_NAME: SITE_NAME_RULE,
    _DEVICE: "auto, cpu, cuda or cuda:N",
    _CLASS_NAME: "text on one line without blanks around it",
    _SHA256: "64 hexadecimal digits, as `fedward site status` prints them",
    _ADDRESS: "host:port, such as fl.example.org:9092",
    _NODE_KEY: "a P-384 public key in OpenSSH's form (ecdsa-sha2-nistp384 AAAA...)",
}


def _sentence(schema: type[BaseModel], problem: Any, where: str) -> str:
    """One of pydantic's problems in our words: file, key, what was expected, what came, remedy."""
    path, known, groups = _locate(schema, problem["loc"])
    key = ".".join(path)
    match problem["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(path[-1], known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(sorted(known))}."
            return f"{where}: unknown key `{key}`; {hint}"
        case "missing":
            return f"{where}: `{key}` is missing; add it (see `fedward schema`)."
        case "json_invalid" | "string_unicode":
            return f"{where}: is not well formed ({problem['msg']}); write it again."
        case "union_tag_invalid" | "union_tag_not_found":
            kinds = " or ".join(kind for group in groups for kind in _kinds(group))
            return (
                f"{where}: `{key}.kind` must be {kinds}; {_got(problem['input'].get('kind'))}. "
                "Change it there."
            )
        case "value_error":
            begin = f"`{key}` must be " if key else ""  # of the whole file: a sentence by itself
            return f"{where}: {begin}{problem['ctx']['error']}. Change it there."
        case "string_pattern_mismatch":
            wanted = _WANTED_PATTERN[problem["ctx"]["pattern"]]
        case "too_short":
            wanted = f"a list of at least {problem['ctx']['min_length']}"
        case other:
            wanted = _WANTED.get(other) or problem["msg"].removeprefix("Input should be ")
    # Who objects is named in no message, not even where the list is mistyped.
    got = "" if "exclude" in path else f"; {_got(problem['input'])}"
    return f"{where}: `{key or 'the file'}` must be {wanted}{got}. Change it there."


def _got(value: Any) -> str:
    match value:
        case None:
            return "got nothing"
        case dict():
            return "got a group of keys"
        case list():
            return f"got a list of {len(value)}"
        case _:
            return f"got {json.dumps(value, ensure_ascii=False):.80}"


def _locate(
    schema: type[BaseModel], loc: tuple[int | str, ...]
) -> tuple[list[str], list[str], list[type[BaseModel]]]:
    """A problem's dotted key, the keys known beside it, and the groups that may stand there."""
    path: list[str] = []
    known: list[str] = []
    here: Any = schema
    for step in loc:
        groups = _groups(here)
        if len(groups) > 1:  # pydantic names the union's kind here, which is no key of the file
            here = next(group for group in groups if step in _kinds(group))
            continue
        if step == "[key]":
            break  # the key itself is the problem
        path.append(str(step))
        if groups:
            known = list(groups[0].model_fields)
            field = groups[0].model_fields.get(str(step))
            here = field.annotation if field else None
        else:
            here = next(iter(get_args(here)[-1:]), None)  # what a mapping holds
    return path, known, _groups(here)


def _kinds(group: type[BaseModel]) -> tuple[str, ...]:
    return get_args(group.model_fields["kind"].annotation)


def _groups(annotation: Any) -> list[type[BaseModel]]:
    """The configuration groups that a key of this type can hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return [group for part in get_args(annotation) for group in _groups(part)]
    return []


def _commented(schema: type[BaseModel], value: BaseModel | None, *, pad: str) -> list[str]:
    """Lines for every key: those of `value`, or the schema's defaults."""
    lines: list[str] = []
    for name, field in schema.model_fields.items():
        default = field.get_default() if value is None else getattr(value, name)
        lines.append(f"{pad}# {field.description}")
        groups = _groups(field.annotation)
        if groups and default is not None:
            given = None if field.is_required() else default
            groups = [group for group in groups if given is None or isinstance(given, group)]
            lines.append(f"{pad}{name}:")
            lines += _commented(groups.pop(0), given, pad=pad + "  ")
        elif field.is_required():
            lines.append(f"{pad}{name}: [first-class, second-class]")
        else:
            text = json.dumps(list(default) if isinstance(default, tuple) else default, default=str)
            lines.append(f"{pad}{name}: {'' if default is None else text}".rstrip())
        for other in groups:
            lines.append(f"{pad}# or {name}:")
            lines += [f"{pad}#   {line}" for line in _commented(other, None, pad="")]
    return lines
