"""Many views of a video -> one prediction, and the numbers and files that report it."""

from vimpac_ext.evaluation.complexity import matrix_flops, multiply_adds, parameter_count
from vimpac_ext.evaluation.knn import knn_accuracy, knn_scores
from vimpac_ext.evaluation.metrics import (
    confusion_matrix,
    label_ranks,
    per_class_accuracy,
    topk_accuracy,
)
from vimpac_ext.evaluation.multi_view import (
    ON_MISSING,
    MultiViewEvaluator,
    MultiViewResult,
    count_videos,
    ensemble_views,
)
from vimpac_ext.evaluation.report import PROTOCOL_KEYS, identified, write_report

__all__ = [
    "ON_MISSING",
    "PROTOCOL_KEYS",
    "MultiViewEvaluator",
    "MultiViewResult",
    "confusion_matrix",
    "count_videos",
    "ensemble_views",
    "identified",
    "knn_accuracy",
    "knn_scores",
    "label_ranks",
    "matrix_flops",
    "multiply_adds",
    "parameter_count",
    "per_class_accuracy",
    "topk_accuracy",
    "write_report",
]
