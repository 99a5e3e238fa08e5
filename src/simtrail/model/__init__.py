WEIGHTS, CONFIG = "encoder.safetensors", "config.json"  # the files of an encoder
GOLDEN, MANIFEST = "golden.safetensors", "files.json"  # further files of a registered one
HEAD, HEAD_CONFIG = "head.safetensors", "head.json"  # what predicts from its features
