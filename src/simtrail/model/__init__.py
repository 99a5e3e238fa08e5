WEIGHTS, CONFIG = "encoder.safetensors", "config.json"  # the files of an encoder
