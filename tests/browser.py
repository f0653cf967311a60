"""JupyterLab as a reader has it: its pages in headless Chromium, cells run from the menu."""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {  # all cells are in the document, not only those in view; no question about news
    '@jupyterlab/notebook-extension/tracker': dict(windowingMode='none', autoStartDefaultKernel=True),
    '@jupyterlab/docmanager-extension/plugin': dict(autosave=False),
    '@jupyterlab/apputils-extension/notification': dict(fetchNews='false', checkForUpdates=False)}


def chromium(): return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)


@contextmanager
def lab(folder):
    "The address of a JupyterLab on copies of the notebooks in this folder, with nobody's settings"
    shutil.copytree(ROOT / 'nbs', folder / 'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    (folder / 'tests').symlink_to(ROOT / 'tests')
    for name, values in SETTINGS.items():
        path = folder / f'settings/{name}.jupyterlab-settings'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    places = {f'JUPYTER{k}': str(folder / v) for k, v in dict(_CONFIG_DIR='config', _RUNTIME_DIR='runtime', _DATA_DIR='data', LAB_SETTINGS_DIR='settings', LAB_WORKSPACES_DIR='workspaces').items()}
    options = ['--no-browser', f'--ServerApp.port={port}', '--ServerApp.port_retries=0', '--IdentityProvider.token=', '--ServerApp.allow_root=True', f'--ServerApp.root_dir={folder / "nbs"}']
    env = {**{k: v for k, v in os.environ.items() if k != 'WSSS_PROGRESS'}, **places, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    with open(folder / 'lab.log', 'w') as log: server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', *options], cwd=folder, env=env, stdout=log, stderr=log)
    try: yield answers(f'http://127.0.0.1:{port}', server, folder / 'lab.log')
    finally:
        server.terminate()
        try: server.wait(60)
        except subprocess.TimeoutExpired: server.kill()


def answers(url, server, log, seconds=300):
    "`url`, as soon as somebody is there"
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try: urllib.request.urlopen(url + '/api', timeout=5).close(); return url
        except OSError: time.sleep(.3)
    raise RuntimeError(f'JupyterLab did not start:\n{log.read_text()[-2000:]}')


@contextmanager
def chromium_page():
    "An empty page of headless Chromium"
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=['--no-sandbox'])
        try: yield browser.new_page(viewport=dict(width=1400, height=1800))
        finally: browser.close()


def choose(page, menu, entry):
    "As the mouse does: open a menu, click an entry"
    page.locator('.lm-MenuBar-itemLabel', has_text=re.compile(f'^{menu}$')).click()
    page.locator('.lm-Menu-itemLabel', has_text=re.compile(f'^{entry}')).first.click()


PROMPTS = "() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent.trim())"
ERRORS = ':is([data-mime-type="application/vnd.jupyter.error"], [data-mime-type="application/vnd.jupyter.stderr"])'  # a page of ours writes nothing to stderr


def open_notebook(page, url, notebook, seconds=300):
    "Open a notebook and wait until its kernel answers"
    page.set_default_timeout(1000 * seconds)
    page.goto(f'{url}/lab/tree/{notebook}?reset')
    page.wait_for_selector('.jp-Notebook .jp-Cell')
    page.locator('#jp-main-statusbar').get_by_text(re.compile(r'\| Idle$')).first.wait_for()


def run_all(page, url, notebook, seconds=900):
    "Open a notebook, clear what was saved in it, run all cells and wait for the last one; its errors as text"
    open_notebook(page, url, notebook)
    choose(page, 'Edit', 'Clear Outputs of All Cells')
    choose(page, 'Run', 'Run All Cells')
    end = time.monotonic() + seconds
    while not all(re.fullmatch(r'\[\d+\]:', p) for p in page.evaluate(PROMPTS)) and not page.locator(ERRORS).count():
        if time.monotonic() > end: raise TimeoutError(f'{notebook}: not done after {seconds} s')
        page.wait_for_timeout(500)
    page.locator('#jp-main-statusbar').get_by_text(re.compile(r'\| Idle$')).first.wait_for()
    page.wait_for_timeout(2000)  # the last figures and formulas
    return page.locator(ERRORS).all_inner_texts()


SEEN = """() => {
  const size = e => { const b = e.getBoundingClientRect(); return [Math.round(b.width), Math.round(b.height)] }
  const pictures = [...document.querySelectorAll('.jp-OutputArea-output img, .jp-OutputArea-output svg, .jp-MarkdownCell .jp-RenderedMarkdown img')]
  const area = document.querySelector('.jp-Notebook').getBoundingClientRect()
  return {
    figures: pictures.map(e => e.complete === false || e.naturalWidth === 0 ? [0, 0] : size(e)),
    wide: [...document.querySelectorAll('.jp-OutputArea-output, .jp-RenderedMarkdown')].filter(e => e.scrollWidth > e.clientWidth + 2 || e.getBoundingClientRect().right > area.right + 2).map(e => e.textContent.trim().slice(0, 60)),
    tall: [...document.querySelectorAll('.jp-OutputArea-output')].filter(e => !e.querySelector('img, svg') && e.getBoundingClientRect().height > 900).length,
    formulas: document.querySelectorAll('mjx-container').length,
    bad_formulas: [...document.querySelectorAll('mjx-merror, .MathJax_Error')].map(e => e.textContent),
    raw: [...document.querySelectorAll('.jp-RenderedMarkdown')].filter(e => { const c = e.cloneNode(true); c.querySelectorAll('mjx-container, code').forEach(x => x.remove()); return /\\$[^$]+\\$|\\\\frac|\\\\mathbf/.test(c.textContent) }).map(e => e.textContent.slice(0, 80)) } }"""


def screenshots(page, out, name):
    "The whole notebook in pictures, one below the other"
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f'{name}-*.png'): old.unlink()
    box = page.locator('.jp-WindowedPanel-outer').first
    height, step = box.evaluate('e => [e.scrollHeight, e.clientHeight]')
    for n, top in enumerate(range(0, height, step - 40)):
        box.evaluate('(e, top) => { e.scrollTop = top }', top)
        page.wait_for_timeout(200)
        box.screenshot(path=str(out / f'{name}-{n:02}.png'))
