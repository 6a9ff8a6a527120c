"""Every command that the documents print, small enough to be run, in chains of one folder each.

A chain goes from nothing: what a printed command needs is written by the ones before it, under the
name that the document gives it. Commands that are not run stand in `NOT_RUN` with the reason.
"""

from printed import coopcyl, core, end2race, featdistill, maniflow_overlay, pinpad, scripts

WITHOUT_MACHINE = "changes this machine's installation"
SUITE = "is the suite that this test is part of"
SLURM = "needs SLURM; sweeps run under its stand-ins in test_sweep.py and test_jobs_sbatch.py"
LONG_LEGO = "takes hours of CPU at 800 pixels; the chain runs the form at 200"
NOT_RUN = {
    **{
        f"featdistill teacher fit --scene LEGO gaussians={gaussians} start.share=0.3 "
        '"train.coarse=[{divisor: 4, until: 0.35}, {divisor: 2, until: 0.65}]" '
        f"train.max_steps={steps} --run-dir runs/{run}": LONG_LEGO
        for gaussians, steps, run in (
            (80000, 9000, "lego800-teacher"),
            (130000, 12000, "lego800-teacher-130k"),
        )
    },
    **{
        f"featdistill train data.scene=LEGO data.teacher=runs/{teacher} data.extra_poses=0 "
        f'"student.grid_resolution=[{grid}]" student.position_frequencies=5 '
        "student.steps_per_axis=200 student.occupancy_resolution=160 "
        f"feature_pipeline.enabled=false {steps} --run-dir runs/{run}": LONG_LEGO
        for teacher, grid, steps, run in (
            ("lego800-teacher", "12, 20, 12", "train.max_steps=12000", "lego800-small"),
            ("lego800-teacher", "14, 24, 14", "train.max_steps=20000", "lego800-large"),
            (
                "lego800-teacher-130k",
                "14, 22, 13",
                "train.rays=4096 train.max_steps=30000",
                "lego800-sharp",
            ),
        )
    },
    "featdistill teacher fit --scene LEGO start.model=runs/lego800-teacher-130k gaussians=160000 "
    "train.lr.scale=0.08 train.lr.final=0.05 train.sh_from=0 loss.scale=0.01 loss.opacity=0.01 "
    "train.max_steps=6000 relocation.end=0.5 --run-dir runs/lego800-teacher-160k": LONG_LEGO,
    "featdistill train data.scene=LEGO data.teacher=runs/lego800-teacher-160k data.extra_poses=200 "
    '"student.grid_resolution=[14, 22, 13]" student.position_frequencies=5 '
    "student.steps_per_axis=400 student.occupancy_resolution=160 feature_pipeline.enabled=false "
    "train.rays=4096 prune.window=500 train.max_steps=25000 --run-dir runs/lego800-fine": LONG_LEGO,
    "featdistill teacher fit --scene LEGO start.model=runs/lego800-teacher-160k gaussians=160000 "
    "train.lr.scale=0.01 train.lr.final=0.1 train.sh_from=0 loss.scale=0.01 loss.opacity=0.01 "
    "train.max_steps=2000 relocation.end=0.5 --run-dir runs/lego800-teacher-last": LONG_LEGO,
    **{
        "featdistill train data.scene=LEGO data.teacher=runs/lego800-teacher-last "
        'data.extra_poses=200 "student.grid_resolution=[13, 22, 13]" '
        "student.position_frequencies=5 student.steps_per_axis=400 "
        "student.occupancy_resolution=160 feature_pipeline.enabled=false train.rays=4096 "
        f"prune.window=500 train.max_steps=30000 seed={seed} --run-dir runs/lego800-seed{seed}": (
            LONG_LEGO
        )
        for seed in range(3)
    },
    "python3 -m pip install uv": WITHOUT_MACHINE,
    "uv pip install 'end2race[faiss]'": WITHOUT_MACHINE,
    "uv pip install 'end2race[ros]'": WITHOUT_MACHINE,
    "uv pip install 'loom-core[ray]'": WITHOUT_MACHINE,
    "uv pip install 'maniflow-overlay[text]'": WITHOUT_MACHINE,
    "pytest packages tests": SUITE,
    "pytest packages tests -m slow": SUITE,
    "pytest packages tests -m dist": SUITE,
    "bash .ci/run": SUITE,
    "python -m distill.lego_response_distill --config C --max-steps N": (
        "is the earlier program's command, beside ours that replaces it"
    ),
    "scripts/pins.py --write": "resolves against a package index; test_pins.py runs --check",
    "torchrun --nnodes=2 --nproc-per-node=4 --node-rank=RANK --master-addr=10.0.0.1 "
    "--master-port=29500 -m coopcyl train --root OPV2V --run-dir runs/opv2v": (
        "needs two hosts; test_two_hosts.py makes two"
    ),
    "pinpad sweep --executor ray:10.0.0.1:6379": "needs a cluster; test_two_hosts.py makes one",
    "pinpad sweep --executor sbatch:site.sbatch --jobs 8": SLURM,
    "featdistill study --executor sbatch:site.sbatch": SLURM,
    "maniflow-overlay servers up --gpus 0,1,2,3 --port 8000 --command "
    '"python -W ignore server.py --port {port} --model-path MODEL --conv-mode vicuna_v1"': (
        "needs HAMSTER's weights and GPUs"
    ),
    "maniflow-overlay servers up --gpus 0,1,2,3 --port 8010 --folder peek --command "
    '"python server.py --port {port} --model-path peek_3b"': "needs PEEK's weights and GPUs",
    "maniflow-overlay servers up --gpus 0 --port 8020 --folder qwen --command "
    '"vllm serve MODEL --port {port}"': "needs a language model and a GPU",
    "pinpad doctor --traces DIR": "needs recorded traces; test_traces.py has LOOM_DATA",
    "scripts/results.py record pinpad-agent runs/three-seed0 runs/three-seed1": (
        "needs two agents; test_results.py records others"
    ),
    "scripts/results.py write": "writes into this checkout; test_results.py compares",
    "python -m benchmarks": "takes a quarter of an hour; --quick is run",
    "python benchmarks/end2race_appearance.py": "trains thirteen drivers in ten CPU-minutes",
    "python benchmarks/pinpad_planted.py": "learns for three CPU-minutes; --quick runs one seed",
    "python benchmarks/pinpad_env.py --original FILE": "needs the original environment's code",
    "python benchmarks/pinpad_update.py --peer CHECKOUT": "needs a checkout of NM512's code",
    "end2race import bag --src drive.mcap --out DATA --lidar-topic /points --drive-topic /drive "
    "--odom-topic /odom --image-topic /camera --calibration calibration.json": (
        "needs a recording; test_bags.py writes some"
    ),
    "end2race import morai --src MORAI --out DATA --calibration calibration.json": (
        "needs a recording; test_importers.py writes one"
    ),
}

CHAINS = (
    core.CORE,
    core.BUILD,
    featdistill.FEATDISTILL,
    coopcyl.COOPCYL,
    pinpad.PINPAD_QUICK,
    pinpad.PINPAD,
    maniflow_overlay.MANIFLOW,
    end2race.END2RACE,
    scripts.SCRIPTS,
)
