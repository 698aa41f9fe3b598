"""Debian's Chromium, without a window: how a page looks from inside."""

import html
import json
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=5000"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--disable-dev-shm-usage"),
    "--hide-scrollbars",
)
FRAMES = """<!doctype html><body>
{frames}
<pre id="found"></pre>
<script>
addEventListener("load", () => {{
  const found = [];
  for (const frame of document.querySelectorAll("iframe")) {{
    const inside = frame.contentDocument, root = inside.documentElement;
    const wide = [...inside.querySelectorAll("body *")].filter(
      x => x.getBoundingClientRect().right > root.clientWidth + 1 && !x.closest(".scroll, pre"));
    const style = frame.contentWindow.getComputedStyle(root);
    const themes = {{}};
    for (const theme of ["light", "dark"]) {{
      root.dataset.theme = theme;
      themes[theme] = [style.backgroundColor, style.color];
    }}
    delete root.dataset.theme;
    found.push([frame.name, frame.clientWidth, {{
      overflow: root.scrollWidth - root.clientWidth,
      wide: wide.map(x => x.outerHTML.slice(0, 120)),
      requests: frame.contentWindow.performance.getEntriesByType("resource").map(x => x.name),
      colours: [style.backgroundColor, style.color],
      themes, headings: [...inside.querySelectorAll("h2")].map(x => x.textContent),
    }}]);
  }}
  document.getElementById("found").textContent = JSON.stringify(found);
}});
</script>
"""


def look(pages, folder, widths=(360, 1280), dark=False):
    """Open pages in frames of these widths, in a new profile and without a network.

    Returns by the page's name and width what a frame holds (``overflow`` in pixels, elements that
    are too ``wide``, ``requests``, ``colours`` of paper and ink, and both by ``themes``); and what
    Chromium said on its console.
    """
    if CHROMIUM is None:
        pytest.skip("Debian's chromium is not installed")
    frames = "".join(
        f'<iframe src="{page.as_uri()}" name="{page.stem}" width="{width}" height="900" '
        'style="border: 0"></iframe>'
        for page in pages
        for width in widths
    )
    around = folder / "frames.html"
    around.write_text(FRAMES.format(frames=frames))
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *FLAGS, scheme, profile, "--dump-dom", around.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    said = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    found = json.loads(html.unescape(said))
    return {(name, width): inside for name, width, inside in found}, console
