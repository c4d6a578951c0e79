"Draw the picture that social sites show beside a link: nbs/images/card.jpeg"
from pathlib import Path
import matplotlib.pyplot as plt
from picie_nb.all import ToyScenes, label_set

scenes, labels = ToyScenes(n=8, size=160, seed=1), label_set("toyscenes")
fig = plt.figure(figsize=(12, 6.3), dpi=100, facecolor="white")
fig.text(.05, .78, "picie_nb", fontsize=58, weight="bold", color="#0072b2")
fig.text(.053, .66, "Unsupervised semantic segmentation,", fontsize=24)
fig.text(.053, .585, "as notebooks that teach it and a library that runs it", fontsize=24)
for i in range(5):
    for row, im in enumerate((scenes[i][0], labels.colorize(scenes[i][1]))):
        ax = fig.add_axes([.05+.183*i, .29-.25*row, .165, .235])
        ax.imshow(im, aspect="auto"); ax.axis("off")
fig.savefig(Path(__file__).resolve().parents[1]/"nbs/images/card.jpeg", pil_kwargs={"quality": 85, "optimize": True})
