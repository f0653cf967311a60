"""One template for all pages and one writer for all tables: escaping, the look, rows as text, Markdown and HTML."""
import re
from html.parser import HTMLParser

import jinja2
import pytest
from markupsafe import Markup

from wsss_nb.base.page import LOOK, filled, one_after_the_other, page, short, table

NASTY = ['<b>bold</b>', '"><script>alert(1)</script>', "' onclick='x", '&amp;', '</style><h1>', '{{ 7 * 7 }}', '{% raw %}']


class Read(HTMLParser):
    "Tags with their attributes, and the texts, as a browser takes them"
    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_data(self, data): self.texts.append(data)


@pytest.mark.parametrize('name', NASTY)
def test_what_people_write_is_text_wherever_it_stands(name):
    body = filled('<a href="{{ x|urlencode }}" title="{{ x }}">{{ x }}</a>', x=name)
    read = Read(page(name, one_after_the_other([body, table([['', name], [name, 1]], 'html')], name)))
    tags = [tag for tag, _ in read.tags]
    assert tags.count('h1') == 1 and tags.count('a') == 1 and not {'b', 'script'} & {*tags}
    a = next(attrs for tag, attrs in read.tags if tag == 'a')
    assert set(a) == {'href', 'title'} and a['title'] == name
    assert ''.join(read.texts).count(name) == 6  # title, heading, link, between, a heading of the table, its cell


def test_html_is_put_into_html_as_it_is_and_a_missing_value_is_refused():
    assert filled('<p>{{ x }}</p>', x=Markup('<i>a</i>')) == '<p><i>a</i></p>'
    with pytest.raises(jinja2.UndefinedError, match="'y' is undefined"): filled('{{ y }}', x=1)


def test_a_page_needs_nothing_else_and_has_two_sets_of_colours():
    text = page('A title', 'body')
    assert not re.search(r'<script|<link|@import|url\(|https?:', text) and text.startswith('<!doctype html>\n<html lang="en">')
    light, dark = (set(re.findall(r'(--\w+):', rules)) for rules in re.findall(r':root\{(.*?)\}', LOOK))
    assert light == dark == set(re.findall(r'var\((--\w+)\)', LOOK))
    assert '<body class="wide">' in page('a', '', wide=True) and '.x{top:0}</style>' in page('a', '', '.x{top:0}')


@pytest.mark.parametrize('x, more, text', [(.4515, {}, '.452'), (.9999, {}, '1.000'), (0., {}, '.000'), (-.0126, dict(sign='+'), '−.013'), (.06, dict(sign='+'), '+.060'),
                                           (10.5, {}, '10.500'), (8.51, dict(digits=1, sign='+'), '+8.5'), (-.3, dict(digits=1, sign='+'), '−.3'), (-10.04, dict(digits=1, sign='+'), '−10.0')])
def test_a_number_is_written_without_its_zero(x, more, text):
    assert short(x, **more) == text


ROWS = [['run', 'mIoU', 'state'], ['a', .5, 'done'], ['a|b', None, '12 left']]


def test_a_table_as_text():
    assert table(ROWS) == 'run   mIoU  state\na    0.500  done\na|b         12 left'  # numbers stand flush right, words do not
    assert table([['x', 'y'], ['1', '–'], ['10', '−.5 ± .1']]) == ' x         y\n 1         –\n10  −.5 ± .1' and table([['x', 'long']]) == 'x  long'


def test_a_table_as_markdown():
    assert table(ROWS, 'md') == '| run | mIoU | state |\n|---|---|---|\n| a | 0.500 | done |\n| a\\|b | | 12 left |'


def test_a_table_as_html():
    read = Read(table([['', '<x>'], [Markup('<i>a</i>'), 2], [None, .25]], 'html'))
    assert [tag for tag, _ in read.tags] == 'table thead tr th th tbody tr td i td tr td td'.split()
    assert [t for t in read.texts if t.strip()] == ['<x>', 'a', '2', '0.250']


def test_a_heat_table_colours_by_value_and_marks_the_best_of_a_column():
    text = table([['', 'x', 'y', 'never there'], ['a', .2, .6, None], ['<b>', .4, None, None]], 'html', heat=True)
    assert re.findall(r'<th>(.*?)</th>', text) == ['', 'x', 'y']
    assert re.findall(r'<td[^>]*>(.*?)</td>', text) == ['a', '0.200', '0.600', '&lt;b&gt;', '<b>0.400</b>', '']
    assert re.findall(r',([\d.]+)\)"', text) == ['0.00', '0.60', '0.30']  # from the least to the most of the table
    alike = table([['', 'x', 'y'], ['a', .2, .6], ['b', .2, .6]], 'html', heat=True)
    assert '<b>' not in alike + table([['', 'x']], 'html', heat=True)  # where all are alike there is no best
