"""What a built page would fetch from another host."""

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from bs4 import BeautifulSoup

from bookkit.book.page_policy import DATA_TYPES

# and in single files:
# Addresses in scripts that are never fetched. Names of XML namespaces, everywhere:
NAMESPACES = ("www.w3.org",)
INERT_HOSTS = {
    "clipboard.min.js": {"clipboardjs.com"},  # its licence comment
    "searchtools.js": {"developer.mozilla.org"},  # a comment
    "pydata-sphinx-theme.js": {"pydata-sphinx-theme.readthedocs.io"},  # a message on the console
    "tex-svg-full.js": {
        "cdn.jsdelivr.net",  # speech, from a menu that _config.yml turns off
        "github.com",
        "www.apache.org",
        "www.mathjax.org",
    },
}
# rel values of <link> for which a browser opens a connection
FETCHED_LINKS = {
    *("stylesheet", "icon", "apple-touch-icon", "mask-icon", "manifest", "preload"),
    *("modulepreload", "prefetch", "preconnect", "dns-prefetch", "prerender"),
}
FETCHED_ATTRIBUTES = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "track": ("src",),
    "iframe": ("src",),
    "frame": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "input": ("src",),
    "body": ("background",),
    "table": ("background",),
    "td": ("background",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
    "base": ("href",),
    "form": ("action",),
    "a": ("ping",),
}


def _external(address: str) -> bool:
    """Does this address leave the book? `data:` and `blob:` do not."""
    try:
        parts = urlsplit(address.strip())
    except ValueError:
        return True
    return bool(parts.netloc) or parts.scheme not in ("", "data", "blob", "about", "javascript")


def requests_in_page(page: BeautifulSoup) -> Iterator[str]:
    """Addresses of other hosts that a browser asks for when it opens or uses the page.

    Plain links are not among them: the reader decides to follow those.
    """
    for tag in page.find_all(True):
        addresses = [str(tag[a]) for a in FETCHED_ATTRIBUTES.get(tag.name, ()) if tag.has_attr(a)]
        if tag.name == "link" and FETCHED_LINKS & {rel.lower() for rel in tag.get("rel", ())}:
            addresses.append(str(tag.get("href", "")))
            addresses += _srcset(str(tag.get("imagesrcset", "")))
        if tag.has_attr("srcset"):
            addresses.remove(str(tag["srcset"]))
            addresses += _srcset(str(tag["srcset"]))
        if tag.name == "meta" and str(tag.get("http-equiv", "")).lower() == "refresh":
            addresses.append(str(tag.get("content", "")).partition("=")[2].strip("'\" "))
        yield from (address for address in addresses if _external(address))
        if tag.name == "iframe" and tag.has_attr("srcdoc"):
            yield from requests_in_page(BeautifulSoup(str(tag["srcdoc"]), "html.parser"))
        if tag.name == "style":
            yield from requests_in_css(tag.get_text())
        if tag.has_attr("style"):
            yield from requests_in_css(str(tag["style"]))
        if tag.name == "script" and not tag.has_attr("src") and tag.get("type") not in DATA_TYPES:
            yield from requests_in_script(tag.get_text())
        for attribute, value in tag.attrs.items():
            if attribute.startswith("on"):
                yield from requests_in_script(str(value))


def _srcset(value: str) -> list[str]:
    return [part.split()[0] for part in re.split(r",\s+", value) if part.split()]


def requests_in_css(text: str) -> list[str]:
    """Addresses of other hosts in url(...) and @import."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    pattern = r"""url\(\s*(?:"([^"]*)"|'([^']*)'|([^)\s]*))\s*\)|@import\s+["']([^"']+)["']"""
    found = ["".join(match.groups(default="")) for match in re.finditer(pattern, text)]
    return [address for address in found if _external(address)]


def requests_in_script(text: str, file: str = "") -> list[str]:
    """Hosts that a script names, but those known to be inert: a script can fetch whatever it names.

    An address put together from pieces escapes this; the test in a browser is for that.
    """
    names = re.findall(r"(?:https?|wss?):(?:\\?/){2}([\w.-]+)", text)
    names += re.findall(r"""["'`]//([\w-]+(?:\.[\w-]+)+)""", text)
    inert = {*NAMESPACES, *INERT_HOSTS.get(file, ())}
    return sorted({name for name in names if name not in inert})
