"""Removal of HTML tags, for the preprocessor `strip_html_tags`."""

import html.parser

from t5lite.data.text.kept_texts import unused_character


def without_tags(text: str) -> str:
    """Returns the text with a space for each tag, comment and declaration.

    A tag begins with `<` and a letter, `/`, `!` or `?`. Character references stay as they are.

    >>> without_tags("<p>if a < b and c > d:<br/>R&amp;D</p>")
    ' if a < b and c > d: R&amp;D '
    """
    if "<" not in text:
        return text
    # The parser reports character references without saying how they were written.
    stand_in = unused_character(text)
    parser = _TextParser()
    parser.feed(text.replace("&", stand_in))
    # NOTE: not `close`, which drops or keeps an unfinished tag depending on the version of Python.
    return ("".join(parser.texts) + parser.rawdata).replace(stand_in, "&")


class _TextParser(html.parser.HTMLParser):
    """Collects the text between tags, and a space for each tag."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.texts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.texts.append(" ")

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.texts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self.texts.append(" ")

    def handle_comment(self, data: str) -> None:
        self.texts.append(" ")

    def handle_decl(self, decl: str) -> None:
        self.texts.append(" ")

    def handle_pi(self, data: str) -> None:
        self.texts.append(" ")

    def unknown_decl(self, data: str) -> None:
        self.texts.append(" ")
