"""The picture of the README, from the runs of `make demo`: python docs/methods_picture.py [runs]"""
import sys
from pathlib import Path

from PIL import Image

from wsss_nb.data.sample import read_mask
from wsss_nb.data.synthetic import synthetic
from wsss_nb.results.report import RunReport
from wsss_nb.base.show import grid, overlay

RUNS = dict(cam_synthetic='CAM', icd_synthetic='ICD', ecsnet_synthetic='ECS-Net', sipe_synthetic='SIPE', svm_synthetic='SVM (SIPE)', ccmr_synthetic='CCMR')
SHOWN = [20, 40, 60, 80]  # evenly spaced, chosen before looking

report, data = RunReport(sys.argv[1] if len(sys.argv) > 1 else 'runs', list(RUNS)), synthetic('val')
folders = [report.stage_folder(run, 'masks') / 'val' for run in report.runs]
rows = [[data.image(i), *(overlay(data.image(i), m) for m in (*(read_mask(f / f'{data.names[i]}.png') for f in folders), data.mask(i)))] for i in SHOWN]
fig = grid(rows, titles=['image', *RUNS.values(), 'truth'], size=1.25)
fig.savefig(png := Path(__file__).parents[1] / 'nbs/pictures/methods.png', dpi=100)
Image.open(png).convert('RGB').quantize(192).save(png, optimize=True)  # a third of the bytes
