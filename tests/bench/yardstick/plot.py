"""The figures as a picture: how many times better than QEMU's pair, and at which share of its processor time."""
import matplotlib

matplotlib.use("Agg")
# The same figures give the same file.
matplotlib.rcParams["svg.hashsalt"] = "twinblock"
matplotlib.rcParams["svg.fonttype"] = "none"
from matplotlib import pyplot  # noqa: E402
from matplotlib.ticker import FuncFormatter  # noqa: E402

PANELS = [("ratio", "times as good as QEMU's pair"), ("cpu_ratio", "times less processor time per request")]


def draw(summary, names, paths):
    """Bars of medians, with the spread over the rounds."""
    shown = [name for name in names if not name.startswith("qemu")]
    lines = [line for line in summary if any("ratio" in cell for cell in line["systems"].values())]
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 1.2 + 0.16 * len(lines) * (len(shown) + 1.5)), sharey=True)
    colours = pyplot.get_cmap("tab10").colors
    height = 1 / (len(shown) + 1.5)
    for axis, (key, label) in zip(axes, PANELS):
        for number, name in enumerate(shown):
            found = [(place, line["systems"][name][key]) for place, line in enumerate(lines)
                     if key in line["systems"].get(name, {})]
            if not found:
                continue
            medians = [ratio["median"] for _, ratio in found]
            spread = [[ratio["median"] - ratio["min"] for _, ratio in found],
                      [ratio["max"] - ratio["median"] for _, ratio in found]]
            axis.barh([place + number * height for place, _ in found], medians, height * 0.9, xerr=spread,
                      error_kw={"elinewidth": 0.7}, color=colours[number % len(colours)], label=name)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_xlabel(label)
        axis.grid(axis="x", which="both", linewidth=0.3)
    axes[0].set_yticks([place + height * (len(shown) - 1) / 2 for place in range(len(lines))],
                       [line["title"] for line in lines])
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncol=max(len(shown), 1), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=110, metadata=metadata)
    pyplot.close(figure)
