"""Videos -> clips: annotations, decoding, spatial views, token stores, clip data sets."""

from vimpac_ext.data.annotations import (
    HMDB51,
    UCF101,
    Diving48,
    HowTo100M,
    Kinetics400,
    PathLabelList,
    SomethingSomethingV2,
    VideoFolder,
)
from vimpac_ext.data.decode import VideoReader, open_record
from vimpac_ext.data.frame_folder import FrameFolder
from vimpac_ext.data.original_tokens import OriginalTokens
from vimpac_ext.data.spatial_views import SpatialView, spatial_views
from vimpac_ext.data.store_format import StoreMeta
from vimpac_ext.data.token_dataset import TokenClips
from vimpac_ext.data.token_source import (
    StoredVideos,
    has_tokens,
    made_by_authors,
    open_token_dataset,
    open_tokens,
    write_video_list,
)
from vimpac_ext.data.token_store import TokenStore
from vimpac_ext.data.token_store_writer import TokenStoreWriter
from vimpac_ext.data.video_dataset import FrameClips

__all__ = [
    "HMDB51",
    "UCF101",
    "Diving48",
    "FrameClips",
    "FrameFolder",
    "HowTo100M",
    "Kinetics400",
    "OriginalTokens",
    "PathLabelList",
    "SomethingSomethingV2",
    "SpatialView",
    "StoreMeta",
    "StoredVideos",
    "TokenClips",
    "TokenStore",
    "TokenStoreWriter",
    "VideoFolder",
    "VideoReader",
    "has_tokens",
    "made_by_authors",
    "open_record",
    "open_token_dataset",
    "open_tokens",
    "spatial_views",
    "write_video_list",
]
