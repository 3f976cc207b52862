"""Optimizers, parameter groups and learning-rate schedules."""

from distcnn.registry import Registry

# (params, lr, *, arguments) -> torch.optim.Optimizer; `params` are groups, `model` is passed where it is declared.
OPTIMIZERS = Registry(
    "optimizers",
    {
        "sgd": "distcnn.optim.sgd:sgd",
        "adam": "distcnn.optim.adam:adam",
        "adamw": "distcnn.optim.adam:adamw",
        "muon": "distcnn.optim.muon:Muon",
    },
    given=("params", "lr", "model"),
    hint="your own package.module:callable such as torch.optim:RMSprop",
)

# (span, *, arguments) -> a function of the step: the rate as a fraction of the peak; `span` is a schedules.Span.
SCHEDULES = Registry(
    "schedules",
    {name: f"distcnn.optim.schedules:{name}" for name in ("constant", "linear", "step", "cosine", "onecycle")},
    given=("span",),
)
