"""TRAIN.TF32, TRAIN.COMPILE and TRAIN.CHANNELS_LAST change the speed and not the result."""
