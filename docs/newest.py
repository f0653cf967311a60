"""For `make newest`: the packages of settings.ini without their bounds, and which versions of them are there now."""
import configparser
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def ranges():
    "Extra ('' = what all need) -> {package: its range in settings.ini}"
    settings = configparser.ConfigParser(delimiters=['='])
    settings.read(Path(__file__).resolve().parents[1] / 'settings.ini', encoding='utf-8')
    found = {k.removesuffix('requirements').rstrip('_'): v for k, v in settings['DEFAULT'].items() if k.endswith('requirements')}
    return {extra: dict(re.fullmatch(r'([\w.-]+)(.*)', r).groups() for r in v.split()) for extra, v in found.items()}


def names(*extras):
    "The packages of these extras, or of all but the dense CRF (it has to be built) and the browser"
    return [p for extra, packages in ranges().items() if extra in extras or not extras and extra not in ('crf', 'browser') for p in packages]


def versions():
    "A line for each package: its version here, its range, and whether the range ends before it"
    for packages in ranges().values():
        for package, allowed in packages.items():
            try: here = version(package)
            except PackageNotFoundError: continue
            end = re.search(r'<(\d+)', allowed)
            yield f'{package:20} {here:14} {allowed:14}' + (' beyond' if end and int(here.split('.')[0]) >= int(end[1]) else '')


if __name__ == '__main__':
    if sys.argv[1] == 'names': print(*names(*sys.argv[2:]))
    else: print(*versions(), sep='\n')
