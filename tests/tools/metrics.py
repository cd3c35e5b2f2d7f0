"""A small metrics.json, in the form that mtl-diffusion evaluate gives it."""


def figure(name, value, error=0.012, n=1000, **more):
    return {name: value, f"{name}_standard_error": error, "n": n, **more}


SUMMARY = {
    "generate": {
        "by_class_guidance_2_interval_0.28_2.9_steps_18": figure(
            "class_accuracy", 0.875, evaluations=22.0
        ),
        "floor": {"frechet_distance_to_train": 0.25, "n": 1000},
    },
    "inpaint": {
        "floor": {"frechet_distance": 2.5, "n": 1000},
        "center": figure("psnr_in_hole", 18.25),
    },
    "edit": {
        "strength_0.65": figure("class_accuracy", 0.625),
        "class_found_0.5": figure("ssim_to_source", 0.75, evaluations=18.0),
        "class_found_0.9": {"largest_share": 0.84, "n": 1000},
    },
}
METRICS = {
    "summary": SUMMARY,
    "translate": {"photo_to_map": figure("psnr", 21.5, feature_distance=0.3, evaluations=18)},
    "feature_space": {"name": "classifier", "kind": "classifier"},
    "classifier": {"accuracy": 0.9, "n": 2000},
    "sampler": "EDMDPMSolverMultistepScheduler",
    "command": "mtl-diffusion evaluate --pipeline runs/x/pipeline",
}
