"""Pictures of what a model fills in where tokens are hidden, drawn while it is pre-trained."""

from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from vimpac_ext.config import ConfigError
from vimpac_ext.data.decode import VideoDecodeError
from vimpac_ext.engine.assembly import build_tokenizer
from vimpac_ext.engine.parallel import GlobalMasker
from vimpac_ext.engine.rng import kept_rng
from vimpac_ext.engine.visualize import complete_tokens
from vimpac_ext.structures import ClipSample
from vimpac_ext.visualization import Block, Row, draw_sheet, grey_out, to_images
from vimpac_ext.visualization.sheet import Image

NUM_VIDEOS = 2
_KEY = "TENSORBOARD_PICTURES_PERIOD"


class TrainingPictures:
    """Draws the same clips with the same masks every time: the tokens, what is hidden, the answer.

    Nothing but the tokens of the training is needed: the pictures are decoded from them.

    Args:
        cfg: configuration.
        device: of the task.
        task: what is going to be trained.
        clips: its training clips; the first videos that can be decoded are drawn.

    Raises:
        ConfigError: if the task hides no tokens, or the tokenizer cannot draw them.
        ValueError: if the tokenizer was given no decoder.
        FileNotFoundError: if its weights are not at hand.
        VideoDecodeError: if no video can be decoded.
    """

    def __init__(self, cfg: CfgNode, device: torch.device, task: Any, clips: Any) -> None:
        if (
            getattr(task, "masker", None) is None
            or getattr(task.backbone, "input_kind", "tokens") != "tokens"
        ):
            raise ConfigError(
                f"{_KEY} draws hidden tokens, but {type(task).__name__} as configured hides none "
                "from a backbone that reads tokens; set it to 0"
            )
        if not cfg.TOKENIZER.NAME:
            raise ConfigError(f"{_KEY} draws tokens: set TOKENIZER.NAME to what made them, or 0")
        self.device = device
        with kept_rng():  # its weights, before they are loaded, are drawn
            self.tokenizer: Any = build_tokenizer(cfg).to(device)
        if not hasattr(self.tokenizer, "decode"):
            raise ConfigError(f"{_KEY}: {cfg.TOKENIZER.NAME} cannot draw tokens (no decode)")
        self.seed = cfg.RNG_SEED
        samples = _decoded(clips)
        self.titles = [clips.records[sample["video_index"]].video_id for sample in samples]
        self.clips = [self._tokens(task, sample["clips"][:1])[0] for sample in samples]
        self._decode(self.clips[0][:1])  # a tokenizer without a decoder speaks up now

    @torch.inference_mode()
    def draw(self, task: Any) -> Image:
        """The picture, uint8 (H, W, 3); the task is left in eval mode.

        Args:
            task: with a masker, a backbone and a head for tokens.

        Raises:
            ConfigError: if no head predicts tokens.
        """
        task.eval()
        # With several processes, the task's masker draws for the clips of all of them.
        masker = task.masker.masker if isinstance(task.masker, GlobalMasker) else task.masker
        generator = torch.Generator(self.device).manual_seed(self.seed)
        blocks = []
        for title, tokens in zip(self.titles, self.clips, strict=True):
            # Not worth compiling for; it would also make the training compile anew.
            with torch.compiler.set_stance("force_eager"):
                mask, completed = complete_tokens(task, tokens, generator, masker)
            real = tokens[:, 0, 0] != task.special.pad
            mask, completed, tokens = mask[real], completed[real], tokens[real]
            images = to_images(self._decode(tokens))
            right = (completed == tokens)[mask].float().mean().nan_to_num().item()
            rows = (
                Row("tokens", images),
                Row(f"masked\n({mask.float().mean().item():.0%} hidden)", grey_out(images, mask)),
                Row(f"model's\n({right:.0%} right)", to_images(self._decode(completed))),
            )
            blocks.append(Block(title, len(real), rows))
        return draw_sheet(blocks)

    def _tokens(self, task: Any, clip: Tensor) -> Tensor:
        clip = clip.to(self.device)
        tokens: Tensor = task.tokenize(clip) if clip.is_floating_point() else clip
        return tokens

    def _decode(self, tokens: Tensor) -> Tensor:
        frames: Tensor = self.tokenizer.decode(tokens)
        return frames


def _decoded(clips: Any) -> list[ClipSample]:
    samples: list[ClipSample] = []
    error = ""
    for index in range(len(clips)):
        sample: ClipSample = clips[index]
        if sample.get("error"):
            error = error or sample["error"]
        else:
            samples.append(sample)
        if len(samples) == NUM_VIDEOS:
            break
    if not samples:
        raise VideoDecodeError(f"{_KEY}: no training video can be decoded; the first: {error}")
    return samples
