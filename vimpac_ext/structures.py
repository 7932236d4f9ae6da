"""What travels between the stages: records, samples, batches, outputs and special token ids."""

from dataclasses import dataclass
from typing import NamedTuple, TypedDict

from torch import Tensor
from typing_extensions import NotRequired

IGNORED_LABEL = -100  # target of a position that no loss may look at
UNLABELLED = -1  # label of a video without a class


@dataclass(frozen=True, slots=True)  # a data set may have millions
class VideoRecord:
    """One video of a data set.

    Attributes:
        path: file to decode, absolute or relative to the working directory.
        video_id: unique within the data set; the key of its tokens in a token store.
        label: class index, or `UNLABELLED`.
        start: start of the segment in seconds, None = start of the file.
        end: end of the segment in seconds, None = end of the file.
        frame_rate: frames a second where the path is a folder of images, None for video files.
    """

    path: str
    video_id: str
    label: int = UNLABELLED
    start: float | None = None
    end: float | None = None
    frame_rate: float | None = None


class TokenGrid(NamedTuple):
    """Size of a token clip."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class SpecialTokens:
    """Ids beyond the tokenizer's vocabulary, numbered as in the released VIMPAC checkpoints.

    The embedding table has V+5 rows; V, V+2 and V+3 are unused. [CLS] is a parameter, not a row.
    """

    vocab_size: int

    @property
    def num_embeddings(self) -> int:
        """Rows of the embedding table: 8197 for the DALL-E vocabulary."""
        return self.vocab_size + 5

    @property
    def pad(self) -> int:
        """Fills the end of a clip when the video is shorter: 8193."""
        return self.vocab_size + 1

    @property
    def mask(self) -> int:
        """Stands where a token is hidden: 8196."""
        return self.vocab_size + 4


class ClipSample(TypedDict):
    """One item of a clip data set, and (collated, with a leading batch axis) a batch.

    Attributes:
        clips: int64 (C, T, H, W) token clips of one video: 2 for contrast, 1 for fine-tuning,
            V*S at test time. Pixel data sets give float (C, 3, T, H, W) instead.
        label: class index or `UNLABELLED`.
        video_index: position of the video in the data set's records.
        error: why the video could not be decoded, "" if it could; only where that is asked for.
    """

    clips: Tensor
    label: int
    video_index: int
    error: NotRequired[str]


class Outputs(TypedDict, total=False):
    """What backbones and heads add up to during a step.

    Attributes:
        cls: (B, D) clip representation.
        features: (B, T, H, W, F) one vector per place; F is D in most backbones.
        mask: bool (B, T, H, W), True = hidden.
        token_logits: (M, V+5) for the M hidden positions, in the order of ``features[mask]``.
        projection: (B, P) contrastive embedding.
        class_logits: (B, num_classes).
    """

    cls: Tensor
    features: Tensor
    mask: Tensor
    token_logits: Tensor
    projection: Tensor
    class_logits: Tensor
