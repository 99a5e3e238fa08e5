"""What settings are worth: trains with them, and with the plan's rules for all others, and prints the test accuracy.

    python benchmarks/settings.py PROJECT SEEDS [KEY=VALUE …]

PROJECT is the folder of a project that is prepared and planned, such as those that benchmarks/out_of_the_box.py leaves;
its recipe of views is that of its plan. SEEDS are numbers, such as 0,1,2. The features are chosen after the training.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import yaml
from recipes import scores

from simtrail.params import changed, load_params
from simtrail.pipeline import workspace as ws
from simtrail.pipeline.plan import make_plan
from simtrail.pipeline.training_run import training_run


def main() -> None:
    project, seeds, settings = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
    os.chdir(project)
    name, source = yaml.safe_load(Path("params.yaml").read_text())["data"]["name"], ws.prepared()
    recipe = ws.read_json(ws.PLAN, "plan")["values"]["pretrain.recipe"]
    for seed in seeds:
        fixed = [f"data.name={name}", f"pretrain.recipe={recipe}", f"pretrain.seeds=[{seed}]"]
        params = load_params(settings=[*fixed, *settings])
        params, start = changed(params, make_plan(params).values, "benchmark"), time.monotonic()
        trained = training_run(params.pretrain, "settings").fit()
        seconds = time.monotonic() - start
        measured = {key: round(value, 3) for key, value in scores(trained.encoder, source).items()}
        features = trained.encoder.config.architecture.features
        print(f"seed {seed}, features {features}, epoch {trained.epoch}, {seconds:.0f} s: {measured}", flush=True)


if __name__ == "__main__":
    main()
