"""A trained run in two seconds: the folders that a run leaves, without its notebooks."""
from wsss_nb.base.core import save_json
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine.methods import segmenter_learner
from wsss_nb.engine.parameters import notebook_parameters, stage_notebook


def lay_down(runs, name, data=None, **evaluated):
    "The run `name` with a segment stage, and an evaluate stage if its parameters are given; returns the folder of the segment stage"
    data, shape, stage = data or synthetic('train', n=16), dict(backbone='tiny', weights='', loss='balanced'), runs / f'stages/segment-{name}'
    if not stage.exists(): segmenter_learner(data, **shape, crop=64, epochs=8, batch_size=4, lr=.004, head_lr=1., optimizer='adamw', device='cpu', folder=stage).fit()
    defaults = {k: v for k, (v, _) in notebook_parameters(stage_notebook('segment')).items()}
    save_json(stage / 'stage.json', dict(stage='segment', folder=stage.name, parameters={**defaults, **shape}, results=dict(classes=data.classes)))
    more = dict(evaluate=dict(folder=f'evaluate-{name}', parameters=evaluated)) if evaluated else {}
    if more: save_json(runs / f'stages/evaluate-{name}/stage.json', dict(stage='evaluate', results={}))
    save_json(runs / name / 'run.json', dict(name=name, state='done', stages=dict(segment=dict(folder=stage.name), **more)))
    return stage
