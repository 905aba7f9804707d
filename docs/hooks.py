"""The site's hook: links to files of the repository that are no pages become their paths, since the site stands alone."""

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with `[text](../path)` written as text and path."""
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)", r"\1 (`\2`)", markdown)
