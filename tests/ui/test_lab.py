"""`make lab` as a learner meets it: JupyterLab in a real browser, notebook 02 run in it."""

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import psutil
import pytest
import yaml
from streaming_server import StreamingServer

from workshop_lib.errors import WorkshopError
from workshop_lib.results import read_records
from workshop_lib.tools.execute import CHECKOUT, find_notebooks, stop_everything
from workshop_lib.tools.lab import START_PAGE
from workshop_lib.widgets import batching_explorer, memory_explorer, paging_explorer

STATE = "test-ui"
NOTEBOOK = "02_vllm_serving"
PARAMETERS = CHECKOUT / "tests" / "notebooks" / "params" / f"{NOTEBOOK}.yaml"
PICTURES = CHECKOUT / "build" / "tests" / "ui"

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None,
    reason="no Chromium: apt-get install chromium (in CI, .ci/run installs it)",
)

UI_TIMEOUT_S = 180.0
"""For what takes a second on an idle machine."""

NOTEBOOK_TIMEOUT_S = 1500.0
"""For all cells: two servers start in them."""

# How the cells of the notebook in front ended: "done" or the error; nothing while they run.
CELLS_JS = """() => {
  const panel = document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden)');
  const failed = panel.querySelector('[data-mime-type="application/vnd.jupyter.error"]');
  if (failed) return 'failed: ' + failed.textContent;
  const prompts = [...panel.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
  return prompts.every(p => /^\\[\\d+\\]:$/.test(p.textContent.trim())) ? 'done' : '';
}"""

BEGUN_JS = """() => {
  const panel = document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden)');
  return panel.querySelector('.jp-CodeCell .jp-InputPrompt').textContent.trim() !== '[ ]:';
}"""

PNG_JS = "async i => Array.from(new Uint8Array(await (await fetch(i.src)).arrayBuffer()))"


# -- the lab, started as `make lab` starts it --------------------------------------------------


def copy_notebooks(folder):
    """The notebooks as a learner has them, without outputs, 02 with small parameters."""
    shutil.copytree(
        CHECKOUT / "notebooks", folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints")
    )
    path = folder / f"{NOTEBOOK}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("jp-MarkdownHeadingCollapsed", None)  # a learner has opened "Further"
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            small = yaml.safe_load(PARAMETERS.read_text())
            cell.source += "".join(f"\n{name} = {value!r}" for name, value in small.items())
    nbformat.write(notebook, path)
    return path


class Lab:
    """A JupyterLab of its own, ended as Ctrl-C ends it."""

    def __init__(self, folder):
        self.notebook = copy_notebooks(folder / "notebooks")
        private = {
            f"JUPYTER_{name}_DIR": str(folder / "jupyter" / name.lower())
            for name in ("CONFIG", "DATA", "RUNTIME")
        }
        self.log = (folder / "lab.log").open("w+")
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "workshop_lib.tools.cli", "lab",
                "--notebooks", str(folder / "notebooks"), "--no-browser", "--port=0",
            ],
            cwd=CHECKOUT,
            env={**os.environ, **private, "WORKSHOP_STATE": STATE, "MPLBACKEND": "Agg"},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self.family = [psutil.Process(self.process.pid)]

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def url(self):
        """The address that it tells the learner to open."""
        end = time.monotonic() + UI_TIMEOUT_S
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/\S*token=\S+", self.said())):
            assert time.monotonic() < end and self.process.poll() is None, self.said()
            time.sleep(0.2)
        return found[0]

    def end(self):
        """Interrupt it; what of it still runs a minute later is a failure, and killed."""
        if self.process.poll() is None:
            self.family += self.family[0].children(recursive=True)
            self.process.send_signal(signal.SIGINT)
        _, left = psutil.wait_procs(set(self.family), timeout=90)
        for process in left:
            process.kill()
        self.process.wait()
        said = self.said()
        self.log.close()
        return [" ".join(process.cmdline()) for process in left if process.is_running()], said


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """One JupyterLab for all tests; at the end nothing of it or of its notebooks is left."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        yield lab
    finally:
        left, said = lab.end()
        problem = stop_everything(STATE)
    assert left == []
    assert problem == ""
    assert lab.process.returncode == 0, said


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=UI_TIMEOUT_S * 1000)
    # Chromium refuses root its sandbox; a container's /dev/shm is too small for it.
    options = [*(["--no-sandbox"] if os.geteuid() == 0 else []), "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(UI_TIMEOUT_S * 1000)
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    page.close()


def keep(page, name):
    """Take a screenshot, for people to look at too, and be sure that it shows something."""
    from PIL import Image

    PICTURES.mkdir(parents=True, exist_ok=True)
    png = page.screenshot(path=PICTURES / f"{name}.png")
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    assert len(picture.getcolors(picture.width * picture.height)) > 100, f"{name}.png is blank"


def until(page, holds, what, timeout_s=UI_TIMEOUT_S):
    """Wait until a function's result is true, and return it."""
    end = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < end, what
        page.wait_for_timeout(200)
    return found


def run_all_cells(page):
    """Choose Run > Run All Cells, again if the menu came too early for a slow machine."""
    kernel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Toolbar-kernelName")
    # Before it has one, JupyterLab would ask for a kernel.
    until(page, lambda: "Python 3" in kernel.inner_text(), "the notebook gets no kernel")

    def chosen():
        page.get_by_role("menuitem", name="Run", exact=True).click()
        entry = page.locator('.lm-Menu-item:not(.lm-mod-disabled)[data-command="runmenu:run-all"]')
        if entry.count() == 0:
            page.keyboard.press("Escape")
            return False
        entry.click()
        page.wait_for_timeout(1000)
        return page.evaluate(BEGUN_JS)

    until(page, chosen, "Run All Cells runs nothing")


def wait_until_run(page):
    """Wait until every cell of the notebook in front has run."""
    status = until(page, lambda: page.evaluate(CELLS_JS), "cells still run", NOTEBOOK_TIMEOUT_S)
    assert status == "done"


def records_of(path):
    """What a saved notebook recorded; nothing while it is half written."""
    with contextlib.suppress(WorkshopError):
        return read_records(path)
    return {}


# -- the lesson --------------------------------------------------------------------------------


@needs_browser
@pytest.mark.timeout(2400)
def test_a_learner_runs_02(lab, page):
    from playwright.sync_api import expect

    page.goto(lab.url())

    # The start page, rendered, with nothing in front of it.
    expect(page.get_by_role("heading", name="How to work with a lesson")).to_be_visible()
    expect(page.locator(".jp-Dialog")).to_have_count(0)
    expect(page.locator(".Toastify__toast")).to_have_count(0)
    keep(page, "start")

    # Its link opens 02 beside it, in JupyterLab.
    page.get_by_role("link", name="02 Serving with vLLM").click()
    panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    expect(panel.get_by_role("heading", name="02 · Serving with vLLM")).to_be_visible()
    idle = panel.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
    expect(idle).to_be_visible()

    run_all_cells(page)
    wait_until_run(page)
    expect(idle).to_be_visible()

    # The load sweep is there, and large enough to be read.
    heading = panel.get_by_role("heading", name="Load the server")
    for _ in range(3):  # cells get their height only when they come into view, and push it away
        heading.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
    expect(heading).to_be_in_viewport()
    figures = panel.locator(".jp-OutputArea-output img")
    sizes = figures.evaluate_all("images => images.map(i => [i.complete, i.naturalWidth])")
    assert len(sizes) >= 8
    assert all(complete and width >= 600 for complete, width in sizes), sizes
    keep(page, "load")

    # The conversation of the chat is there; its server is gone by now, and it says so.
    chat = panel.locator(".widget-vbox", has=page.get_by_placeholder("ask the model"))
    expect(chat).to_contain_text("the first after")
    chat.get_by_placeholder("ask the model").fill("Are you there?")
    chat.get_by_role("button", name="Send").click()
    expect(chat).to_contain_text("llm-serve-svc")
    expect(chat.get_by_role("button", name="Send")).to_be_enabled()
    keep(page, "chat")

    # The sliders redraw their figures, with the numbers of the simulators and of the budget.
    for label, key, explorer in (
        ("block size (tokens)", "ArrowRight", paging_explorer(block_size=32)),
        ("slots (max_num_seqs)", "ArrowLeft", batching_explorer(slots=2)),
        ("TP (GPUs)", "ArrowRight", memory_explorer(tp=2)),
    ):
        widget = panel.locator(".widget-vbox", has_text=label)
        slider = widget.locator(".widget-slider", has_text=label).get_by_role("slider")
        slider.scroll_into_view_if_needed()
        picture, drawn = widget.locator("img.widget-image"), bytes(explorer.picture.value)
        expect(picture).to_be_visible()
        assert bytes(picture.evaluate(PNG_JS)) != drawn
        slider.press(key)
        expect(widget).to_contain_text(explorer.says)
        until(page, lambda p=picture, d=drawn: bytes(p.evaluate(PNG_JS)) == d, f"{label}: figure")
    keep(page, "explorer")
    slider.press("ArrowRight")
    expect(widget).to_contain_text("tensor parallelism over 3 GPUs does not divide")
    expect(picture).to_be_hidden()

    # What the learner saves holds what was found, and the widget's own picture.
    page.keyboard.press("Escape")
    page.keyboard.press("Control+s")
    expect(page.locator(".jp-Dialog")).to_have_count(0)
    until(page, lambda: "checks_passed" in records_of(lab.notebook), "it was not saved")
    records = records_of(lab.notebook)
    assert records["kv_tokens_predicted"] == records["kv_tokens_engine"]
    assert records["checks_passed"] is True

    # A laptop without a network: nothing else was asked for.
    elsewhere = {urlsplit(url).netloc for url in page.asked if url.startswith("http")}
    assert elsewhere == {urlsplit(page.url).netloc}
    assert not [url for url in page.asked if re.search(r"/lab/api/(news|update|extensions)", url)]


WIDGETS = [
    """
from contextlib import nullcontext
from workshop_lib.widgets.live import ChatBox
chat = ChatBox(lambda: nullcontext({url!r}), max_tokens=90)
chat
""",
    """
from workshop_lib.serving.benchmark import start_sweep
from workshop_lib.widgets import watch
run = start_sweep({url!r}, ["Hi"], levels=(1,), requests_per_level=90000, max_tokens=2)
result = await watch(run)
print("kept", len(result.request_records), "stopped", result.stopped)
""",
]


@needs_browser
def test_chat_and_stop_button(lab, page):
    """Both work while the cell of the load still runs; no vLLM is needed for that."""
    from playwright.sync_api import expect

    # An answer takes two minutes: a slow browser's Stop comes before its end.
    with StreamingServer(ttft_ms=20, itl_ms=1500) as server:
        cells = [nbformat.v4.new_code_cell(text.strip().format(url=server.url)) for text in WIDGETS]
        nbformat.write(
            nbformat.v4.new_notebook(
                cells=cells, metadata=nbformat.read(lab.notebook, as_version=4).metadata
            ),
            lab.notebook.parent / "widgets.ipynb",
        )
        address = urlsplit(lab.url())
        folder = f"http://{address.netloc}/lab/workspaces/widgets/tree"  # nothing else is open
        page.goto(f"{folder}/widgets.ipynb?{address.query}")
        panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        expect(panel.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]')).to_be_visible()
        run_all_cells(page)
        chat = panel.locator(".widget-vbox", has=page.get_by_placeholder("ask the model"))
        question = chat.get_by_placeholder("ask the model")
        load_stop = panel.get_by_role("button", name="Stop").last
        expect(load_stop).to_be_enabled()
        expect(panel).to_contain_text("1 concurrent:")  # the load runs, the kernel is busy

        # An answer grows, and Stop ends it.
        question.fill("What is a GPU?")
        question.press("Enter")
        expect(chat).to_contain_text("word word word")
        chat.get_by_role("button", name="Stop").click()
        expect(chat).to_contain_text("stopped after")
        keep(page, "chat-stopped")

        # The load's button ends the load; what has finished is kept.
        load_stop.click()
        expect(panel).to_contain_text(re.compile(r"kept \d+ stopped True"))
        expect(panel).to_contain_text("finished requests are kept")
        wait_until_run(page)
        keep(page, "load-stopped")


# -- what the browser is not needed for --------------------------------------------------------


def test_start_page_links_every_notebook():
    folder = CHECKOUT / "notebooks"
    page = nbformat.read(folder / START_PAGE, as_version=4)
    text = "\n".join(cell.source for cell in page.cells)
    links = re.findall(r"\]\(([\w/]+\.ipynb)\)", text)
    there = {str(path.relative_to(folder)) for path in find_notebooks(folder, solutions=True)}
    assert there <= set(links)


def test_a_damaged_notebook_is_named(tmp_path):
    shutil.copytree(CHECKOUT / "notebooks", tmp_path / "notebooks")
    Path(tmp_path / "notebooks" / "01_ray_cluster.ipynb").write_text("{")
    done = subprocess.run(
        [sys.executable, "-m", "workshop_lib.tools.cli", "lab",
         "--notebooks", str(tmp_path / "notebooks")],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "git restore 01_ray_cluster.ipynb" in done.stderr
