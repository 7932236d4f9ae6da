"""Every configuration key with its default. Names and meanings follow PySlowFast where it has them.

A section with a ``NAME`` is a component: ``NAME`` is the registered class, the lower-case keys are
its constructor's keyword arguments. ``HEADS`` and ``LOSSES`` map names of your choice to such
sections (set an entry to null to remove an inherited one).
"""

from typing import Any

DEFAULTS: dict[str, Any] = {
    # --- components -------------------------------------------------------------------------
    "PLUGINS": [],  # modules to import first, so that they can register components
    "TASK": {"NAME": ""},  # PretrainTask, FinetuneTask, TrainTokenizerTask
    "TOKENIZER": {"NAME": ""},  # makes the tokens; also checked against the token stores
    "MASKER": {"NAME": ""},  # hides tokens; no NAME = none, where no head predicts them
    "BACKBONE": {"NAME": ""},
    "HEADS": {},
    "LOSSES": {},
    # --- model ------------------------------------------------------------------------------
    "MODEL": {
        "NUM_CLASSES": 0,  # classes of the classification head; 0 = no labels needed
        "CHANNELS_LAST": False,  # memory format of convolutions: of the backbone and the tokenizer
    },
    # --- data -------------------------------------------------------------------------------
    "DATA": {
        "PATH_TO_DATA_DIR": "",  # folder of the downloaded data set
        "NUM_FRAMES": 5,  # frames in a clip (T)
        # Frames of a clip: rate (every SAMPLING_RATE-th), segments (one of each of NUM_FRAMES equal
        # parts of the video: at random in training, the middle one in a test of one clip).
        "SAMPLING": "rate",
        "SAMPLING_RATE": 1,  # take every n-th frame of the TARGET_FPS frames
        "TARGET_FPS": 2.0,  # frames per second at which videos are decoded and tokenised
        "DECODING_BACKEND": "pyav",  # of clips of frames: pyav, torchcodec (pip install ..[decode])
        "TRAIN_CROP_SIZE": 128,  # pixels, height = width
        "TEST_CROP_SIZE": 128,  # pixels, height = width
        "TOKENS": "store",  # where tokens come from: store, online (TOKENIZER in each step)
        "TOKEN_STRIDE": 8,  # pixels per token side; divides the crops where there are tokens
        "VOCAB_SIZE": 8192,  # codes of the tokenizer
        "TRAIN_VIEWS": "center",  # or three_crops, resize2_crop3, resize2_crop3_flip2, or a list
        "MAX_PAIR_DISTANCE": None,  # seconds between the two clips of a pair; null = whole video
        "SINGLE_FRAME": False,  # control: repeat one frame of the clip T times
        "ENSEMBLE_METHOD": "sum",  # how view probabilities become one prediction: sum, max
        # A video that cannot be decoded: error; skip (in training on frames another one takes its
        # place, elsewhere it is left out, stated); count_wrong (as skip, but wrong in a test).
        "ON_BAD_VIDEO": "error",
    },
    "DATA_LOADER": {
        "NUM_WORKERS": 2,  # processes that prepare batches; 0 = in the main process
        "PIN_MEMORY": True,  # page-locked batches, used on a GPU only
    },
    # --- random views of training clips, for pixel backbones --------------------------------
    "AUG": {
        "ENABLE": False,  # in place of DATA.TRAIN_VIEWS
        "SCALE": [0.08, 1.0],  # area of the crop, as a share of the frame
        "ASPECT": [0.75, 1.3333],  # width / height of the crop
        "FLIP": True,  # False where left and right are classes (Something-Something)
        "RAND_AUGMENT_OPERATIONS": 0,  # for each clip; 0 = none
        "RAND_AUGMENT_MAGNITUDE": 9,  # 0 to 30
        # Clips of each video in a batch, each with its own start and view (also without ENABLE). As
        # in PySlowFast batches and epochs count videos: a step sees NUM_SAMPLE times as many clips.
        "NUM_SAMPLE": 1,
    },
    # --- token extraction -------------------------------------------------------------------
    "EXTRACT": {
        "BATCH_SIZE": 64,  # frames per tokenizer call
        "PRECISION": "fp32",  # fp32, bf16
        "NUM_WORKERS": 2,  # decoding threads
        "TIMEOUT": 1800.0,  # seconds of decoding after which a video counts as bad; 0 = no limit
    },
    # --- training ---------------------------------------------------------------------------
    "TRAIN": {
        "ENABLE": True,
        # Trainings one after the other, as a list of mappings with the keys that differ in each; a
        # stage goes on with the weights and moments of the one before. See docs/training.md.
        "STAGES": [],
        "DATASET": {"NAME": "", "split": "train"},
        "TOKEN_STORE": "",  # of tools/extract_tokens.py, or the authors' folders (pattern, list)
        "TOKEN_SPLIT_FILE": "",  # without a DATASET: list of the store's videos to use; "" = all
        "BATCH_SIZE": 64,  # videos per parameter update, all processes together
        # Videos per forward pass of all processes together (= contrast group); 0 = BATCH_SIZE.
        "MICRO_BATCH_SIZE": 0,
        "EVAL_PERIOD": 0,  # test every n epochs while training; 0 = never
        "CHECKPOINT_PERIOD": 10,  # save every n epochs (and after the last)
        "CHECKPOINT_PERIOD_STEPS": 0,  # also save every n updates; 0 = off
        "KEEP_CHECKPOINTS": 0,  # newest checkpoints to keep (2 or more survive damage); 0 = all
        "AUTO_RESUME": True,  # continue from the newest checkpoint in OUTPUT_DIR
        "CHECKPOINT_FILE_PATH": "",  # initialise weights (only) from this file
        "CHECKPOINT_OPTIMIZER": False,  # take that file's optimizer moments too (a next stage)
        # Of several processes: ddp (each has all weights), fsdp (each has a part of every weight).
        "PARALLEL": "ddp",
        "PRECISION": "fp32",  # fp32, bf16 (autocast), fp16 (autocast and loss scaling)
        "TF32": False,  # let GPUs round inputs of float32 products and convolutions to 10 bits
        "COMPILE": False,  # torch.compile the backbone
        "KILL_LOSS_EXPLOSION_FACTOR": 0.0,  # stop at so many times the loss logged before; 0 = off
        "EMA_DECAY": 0.0,  # per update, of averaged weights, which are then tested; 0 = off
    },
    # --- k-NN: every TRAIN.EVAL_PERIOD epochs; with TRAIN.ENABLE False of a checkpoint ---------
    "KNN": {
        "ENABLE": False,
        "TRAIN": {  # the bank: labelled videos that the others are compared with
            "DATASET": {"NAME": "", "split": "train"},  # root: unless DATA.PATH_TO_DATA_DIR
            "TOKEN_STORE": "",
            "TOKEN_SPLIT_FILE": "",
        },
        "TEST": {  # the videos to classify
            "DATASET": {"NAME": "", "split": "test"},
            "TOKEN_STORE": "",
            "TOKEN_SPLIT_FILE": "",
        },
        "TARGET_FPS": 2.0,  # frames per second of these tokens; may differ from DATA.TARGET_FPS
        "SAMPLING_RATE": 1,  # take every n-th of them
        "CLIP": "middle",  # of each video: middle, random (the authors')
        "K": 200,  # neighbours
        "TEMPERATURE": 0.07,
        "BATCH_SIZE": 64,  # clips per forward pass
    },
    # --- testing ----------------------------------------------------------------------------
    "TEST": {
        "ENABLE": True,
        "DATASET": {"NAME": "", "split": "validation"},
        "TOKEN_STORE": "",
        "TOKEN_SPLIT_FILE": "",
        "BATCH_SIZE": 64,  # clips (views) per forward pass
        # "" = the newest checkpoint in OUTPUT_DIR; "none" = the model as built, with TRAIN.ENABLE
        # False and weights that components bring (BACKBONE.weights, HEADS.*.pretrained).
        "CHECKPOINT_FILE_PATH": "",
        "NUM_ENSEMBLE_VIEWS": 10,  # temporal views per video
        "NUM_SPATIAL_CROPS": 3,  # 3: top-left, center, bottom-right; 1: center
        "PRECISION": "fp32",  # fp32, bf16 (autocast)
        "START_RULE": "linspace",  # linspace i*D/(V-1), uniform i*D/V, vimpac (V=1 starts at 0)
    },
    # --- optimisation -----------------------------------------------------------------------
    "SOLVER": {
        "MAX_EPOCH": 10,
        "BASE_LR": 1e-4,
        "LR_POLICY": "linear",  # linear (decay to 0), cosine (to COSINE_END_LR), step, constant
        "COSINE_END_LR": 0.0,
        "STEPS": [],  # step: epochs of the schedule at which ...
        "LRS": [],  # ... the rate becomes BASE_LR times the number at the same place
        "SCHEDULE_EPOCHS": 0,  # epochs that the schedule spans; 0 = MAX_EPOCH
        "SCHEDULE_START_EPOCH": 0,  # epochs of the schedule that an earlier stage has done
        "WARMUP_RATIO": 0.1,  # share of all updates spent on linear warm-up
        "WARMUP_EPOCHS": 0.0,  # in place of WARMUP_RATIO; at least one update
        "WARMUP_STEPS": 0,  # updates, in place of WARMUP_RATIO
        "WARMUP_START_LR": 0.0,
        "OPTIMIZING_METHOD": "adamw",  # adamw, adamw_original (the authors'), adam, sgd
        "BETAS": [0.9, 0.999],
        "EPS": 1e-8,
        "MOMENTUM": 0.9,  # of sgd
        "DAMPENING": 0.0,  # of sgd
        "NESTEROV": True,  # of sgd
        "WEIGHT_DECAY": 0.01,
        # Pattern of parameter names -> factor of their rate, e.g. {"heads.*": 10.0}; null removes.
        "LR_SCALES": {},
        "LAYER_DECAY": 1.0,  # a layer's rate is that of the next one times this; 1 = off
        "NO_DECAY": "vectors",  # not decayed: vectors (biases, gains of norms, [CLS]), original
        "CLIP_GRAD_L2NORM": 1.0,  # 0 = off
    },
    # --- run --------------------------------------------------------------------------------
    "NUM_GPUS": 1,  # processes to start on this machine, each with its GPU; 0 = CPU
    "NUM_CPU_PROCESSES": 1,  # processes to start on this machine if NUM_GPUS is 0
    "DIST_TIMEOUT": 600.0,  # seconds that a process waits for the others before the run stops
    "RNG_SEED": 0,
    "OUTPUT_DIR": "output",
    # URL of a folder that OUTPUT_DIR is copied to at every checkpoint, and taken from where it has
    # a newer one; "" = none. See docs/launch.md.
    "REMOTE_DIR": "",
    "LOG_PERIOD": 10,  # updates between log lines
    "LOG_MODEL_INFO": True,  # log parameters, operations and activation memory at the start
    "LOG_MFU": True,  # log the share of the device's peak that matrix products use
    "TENSORBOARD": True,  # event files in OUTPUT_DIR/tensorboard
    "TENSORBOARD_PICTURES_PERIOD": 0,  # epochs between pictures of a pre-training; 0 = none
    "WANDB": {  # Weights & Biases; needs the package wandb
        "ENABLE": False,
        "PROJECT": "vimpac_ext",
        "ENTITY": "",  # user or team; "" = yours
        "RUN_NAME": "",  # "" = one is found
        "MODE": "online",  # online, offline (to be uploaded later: wandb sync)
    },
}

# Mappings from a free name to a component section.
COMPONENT_MAPPINGS = ("HEADS", "LOSSES")

# Mappings from a free name to a number.
NUMBER_MAPPINGS = ("SOLVER.LR_SCALES",)

# Which registry a component section's NAME is looked up in.
SECTION_REGISTRIES = {
    "TASK": "TASKS",
    "TOKENIZER": "TOKENIZERS",
    "MASKER": "MASKERS",
    "BACKBONE": "BACKBONES",
    "HEADS": "HEADS",
    "LOSSES": "LOSSES",
    "TRAIN.DATASET": "DATASETS",
    "TEST.DATASET": "DATASETS",
    "KNN.TRAIN.DATASET": "DATASETS",
    "KNN.TEST.DATASET": "DATASETS",
}
