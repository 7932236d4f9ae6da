"""Training steps: pre-training, fine-tuning, tokenizer training; and token extraction."""

from vimpac_ext.tasks.finetune import FinetuneTask
from vimpac_ext.tasks.pretrain import PretrainTask
from vimpac_ext.tasks.train_tokenizer import TrainTokenizerTask

__all__ = ["FinetuneTask", "PretrainTask", "TrainTokenizerTask"]
