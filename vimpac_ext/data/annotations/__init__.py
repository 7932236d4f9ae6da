"""Annotation files of the supported data sets -> lists of videos."""

from vimpac_ext.data.annotations.common import missing_videos
from vimpac_ext.data.annotations.diving48 import Diving48
from vimpac_ext.data.annotations.howto100m import HowTo100M
from vimpac_ext.data.annotations.kinetics import Kinetics400
from vimpac_ext.data.annotations.lists import PathLabelList, VideoFolder
from vimpac_ext.data.annotations.something_something import SomethingSomethingV2
from vimpac_ext.data.annotations.ucf_hmdb import HMDB51, UCF101

__all__ = [
    "HMDB51",
    "UCF101",
    "Diving48",
    "HowTo100M",
    "Kinetics400",
    "PathLabelList",
    "SomethingSomethingV2",
    "VideoFolder",
    "missing_videos",
]
