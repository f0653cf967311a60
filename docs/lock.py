"""Which of the versions in constraints.txt the package index has: `make setup LOCK=1` installs these, and the rest from their ranges.

lock.py PYTHON CONSTRAINTS OUT: writes OUT, constraints.txt without what the index has not, and says in one line what that is."""
import subprocess
import sys
from pathlib import Path


def pinned(text):
    "The lines that pin a version"
    return [line.strip() for line in text.splitlines() if '==' in line and not line.startswith('#')]


def there(python, line):
    "Whether pip can get this version; torch and torchvision are asked for one by one, too"
    asked = [python, '-m', 'pip', 'install', '-qq', '--dry-run', '--ignore-installed', '--no-deps', line]
    return subprocess.run(asked, capture_output=True).returncode == 0


def kept(lines, has):
    "The lines that the index has; torch and torchvision are a pair: both or neither"
    found = [line for line in lines if has(line)]
    pair = [line for line in lines if line.startswith('torch')]
    return [line for line in found if line not in pair or all(p in found for p in pair)]


def main(python, constraints, out):
    "Write the lock that this index can keep"
    lines = pinned(Path(constraints).read_text(encoding='utf-8'))
    keeps = kept(lines, lambda line: there(python, line))
    Path(out).write_text('\n'.join(keeps) + '\n', encoding='utf-8')
    lost = ', '.join(line for line in lines if line not in keeps)
    print(f'LOCK=1: {len(keeps)} of {len(lines)} published versions' + (f'; the package index has no {lost}: from the ranges of settings.ini instead, and numbers need not be the same to the bit' if lost else ''))


if __name__ == '__main__': main(*sys.argv[1:])
