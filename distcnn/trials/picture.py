"""A plot of the trials: one self-contained HTML file."""

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from distcnn.report.figures import label


def write_picture(found: dict[str, Any], path: Path) -> None:
    """Write a plot of the result of `summarise`: per config a row with a point per seed, the mean and its interval."""
    configs = {name: one for name, one in found["configs"].items() if "accuracy" in one}
    figure = go.Figure()
    for row, one in enumerate(configs.values()):
        trials, accuracy = one["trials"], one["accuracy"]
        # Steps of the golden angle give distinct hues.
        colour = {"color": f"hsl({(210 + 137.5 * row) % 360:.0f}, 60%, 45%)"}
        figure.add_scatter(
            x=[trial["accuracy"] for trial in trials], y=[row] * len(trials), mode="markers", marker=colour,
            opacity=0.6, text=[f"seed {trial['seed']}" for trial in trials], hovertemplate="%{x:.2%}, %{text}",
            name="",
        )  # fmt: skip
        if accuracy["low"] is not None:
            mean, low, high = (accuracy[key] for key in ("mean", "low", "high"))
            figure.add_scatter(
                x=[mean], y=[row + 0.25], mode="markers", marker=colour | {"symbol": "diamond", "size": 10},
                error_x={"type": "data", "symmetric": False, "array": [high - mean], "arrayminus": [mean - low]},
                hovertemplate=f"mean %{{x:.2%}}, {low:.2%} to {high:.2%}", name="",
            )  # fmt: skip
    figure.update_layout(
        template="plotly_white", showlegend=False, height=160 + 80 * len(configs),
        xaxis={"title": "accuracy: each seed, the mean and its 95 % confidence interval", "tickformat": ".1%"},
        yaxis={"tickvals": [*range(len(configs))], "ticktext": [*map(label, configs)], "zeroline": False,
               "range": [-0.5, len(configs) - 0.25], "automargin": True},
    )  # fmt: skip
    path.write_text(figure.to_html(default_height="auto"), encoding="utf-8", errors="replace")
