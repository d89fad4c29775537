"""How the plots of the notebooks look: `import style` is all that a notebook says of it."""

import matplotlib.pyplot as plt

# Of Okabe and Ito, told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, YELLOW, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#666666"
KERAS, OPTAX, OTHER = BLUE, ORANGE, GREY

plt.rcParams.update(
    {
        "figure.dpi": 120,
        "figure.figsize": (9, 3.6),
        "figure.constrained_layout.use": True,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "grid.alpha": 0.3,
        "lines.linewidth": 2,
    }
)
