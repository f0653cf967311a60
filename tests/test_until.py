"""A run that is cut, and cut again, ends with the numbers of one that was not; losses told to others change nothing."""
import time

import pytest
import torch

from inside import inside
from wsss_nb.base import tell
from wsss_nb.base.core import UserError
from wsss_nb.base.until import TimeUp, check_time, span_of, stopping_after
from wsss_nb.cli import main
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine.methods import localiser_learner
from wsss_nb.engine.record import Run
from wsss_nb.engine.run import resume_run, run_recipe
from wsss_nb.engine.stage import stage_key

RECIPE = 'stages: [train, masks]\ntrain: {epochs: 3, batch_size: 3}\nmasks: {splits: [val], scales: [1.0], workers: 1}\n'


def cut_after(monkeypatch, n):
    "The time is up at the n-th step of whatever is at work"
    left = [n]
    def check():
        left[0] -= 1
        if left[0] < 0: raise TimeUp('the time given by --stop-after is over.')
    monkeypatch.setattr(tell, 'check_time', check)


def files_of(run):
    "What a run made: weights and masks"
    net = torch.load(run.stage('train') / 'checkpoint.pt', weights_only=True)['net']
    return net, {p.name: p.read_bytes() for p in (run.stage('masks') / 'val').glob('*.png')}


def test_a_run_that_is_cut_twice_equals_one_that_is_not(tmp_path, monkeypatch):
    (tmp_path / 'r.yaml').write_text(RECIPE)
    with inside(): whole = Run(run_recipe(str(tmp_path / 'r.yaml'), ['limit=6'], tmp_path / 'whole'))
    stopped = []
    with inside():
        for n in (3, 6):
            with monkeypatch.context() as m:
                cut_after(m, n)
                with pytest.raises(TimeUp) as e: run_recipe(str(tmp_path / 'r.yaml'), ['limit=6'], tmp_path / 'cut') if not stopped else resume_run('r', tmp_path / 'cut')
            stopped.append((str(e.value), Run(tmp_path / 'cut/r').state))
        done = Run(resume_run('r', tmp_path / 'cut'))
    assert [s for _, s in stopped] == ['stopped in train', 'stopped in masks'] and done.state == 'done'
    for text, _ in stopped: assert text.startswith('run r stopped in ') and f'what is done is kept, go on with: wsss resume r --runs {tmp_path / "cut"}' in text and '\n' not in text
    (a, masks), (b, again) = files_of(whole), files_of(done)
    assert masks == again and len(masks) == 6 and all(torch.equal(a[k], b[k]) for k in a)


def test_the_time_is_read_and_checked(monkeypatch):
    assert [span_of(t) for t in ('11h', '1h30m', '120s', '2m', '')] == [39600, 5400, 120, 120, 0]
    for text in ('eleven', '11', 'h', '0s'):
        with pytest.raises(UserError, match='--stop-after: expected a time such as 11h'): span_of(text)
    check_time()
    with stopping_after('0.001s'):
        time.sleep(.01)
        with pytest.raises(TimeUp): check_time()
    check_time()


def test_a_limit_goes_with_one_stage_at_a_time(capsys, tmp_path):
    assert main(['run', 'cam_synthetic', '--stop-after', '1h', '--jobs', '2', '--runs', str(tmp_path)]) == 2
    assert 'leave --launch, --jobs and --scheduler out' in capsys.readouterr().err


# -- loggers

SMALL = dict(backbone='tiny', weights='', crop=48, long_side=(48, 64), batch_size=2, epochs=2, device='cpu')


def test_a_logger_hears_every_step_and_changes_nothing(tmp_path, monkeypatch):
    from accelerate import tracking
    heard = []
    class Ear(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = 'ear', True, None
        def __init__(self, run_name, logging_dir=None, **kw): self.where = logging_dir
        def store_init_configuration(self, values): heard.append(('begin', self.where, values['lr']))
        def log(self, values, step=None, **kw): heard.append((step, values))
        def finish(self): heard.append(('end',))
    from wsss_nb.engine import loggers
    monkeypatch.setattr(loggers, 'known_loggers', lambda: dict(ear=Ear)), monkeypatch.setattr(loggers, 'installed_loggers', lambda: ['ear'])
    data = synthetic('train', n=4)
    plain, told = (localiser_learner(data, folder=tmp_path / n, log=log, **SMALL) for n, log in (('a', ''), ('b', 'ear')))
    assert plain.fit() == told.fit()
    assert heard[0] == ('begin', str(tmp_path / 'b/log'), plain.given['lr']) and heard[-1] == ('end',)
    assert [(s, v['loss']) for s, v in heard[1:-1]] == [(h['step'], h['loss']) for h in plain.history] and all(v['lr'] > 0 for _, v in heard[1:-1])


def test_tensorboards_events_are_the_history(tmp_path):
    try: from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        with pytest.raises(UserError, match='tensorboard is not installed; for log=tensorboard'): localiser_learner(synthetic('train', n=4), log='tensorboard', **SMALL)
        return
    learner = localiser_learner(synthetic('train', n=4), folder=tmp_path, log='tensorboard', **SMALL)
    learner.fit()
    (where,) = {p.parent for p in (tmp_path / 'log').rglob('events.out*') if EventAccumulator(str(p.parent)).Reload().Tags()['scalars']}
    events = EventAccumulator(str(where)).Reload().Scalars('loss')
    assert [(e.step, pytest.approx(e.value)) for e in events] == [(h['step'], h['loss']) for h in learner.history]


def test_a_wrong_logger_is_told_and_a_key_has_none():
    with pytest.raises(UserError, match="log: unknown name 'tensorbord'. Did you mean 'tensorboard'"): localiser_learner(synthetic('train', n=4), log='tensorbord', **SMALL)
    from wsss_nb.engine.parameters import parameters_of
    p = {k: v for k, (v, _) in parameters_of('train').items()}
    assert stage_key('train', dict(p, limit=2)) == stage_key('train', dict(p, limit=2, log='wandb'))
