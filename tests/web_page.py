"""Reads web pages that the library writes."""

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "wbr"}


class Page(HTMLParser):
    """Tables, headings, paragraphs and attributes of a page; checks that all tags close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.headings, self.paragraphs = [], [], [], []
        self.sources, self.ids, self.targets, self.tags = [], [], [], set()
        self.descriptions = []  # of pictures and films
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [attributes[name] for name in ("src",) if name in attributes]
        self.targets += [attributes["href"]] if "href" in attributes else []
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag in ("img", "video"):
            self.descriptions.append(attributes.get("alt") or attributes.get("aria-label"))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "p":
            self.paragraphs.append("")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.open and self.open[-1] == "p":
            self.paragraphs[-1] += data
        elif self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data

    def table(self, *header):
        [found] = [t for t in self.tables if tuple(t[0][: len(header)]) == header]
        return found[1:]
