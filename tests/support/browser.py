"""What a person does on the page of `minip2p app`."""

from paths import ROOT

PHOTO = ROOT / "tests/data/renders/00.png"
CAPTION = "on the street, a blue umbrella and a red lamp"


def set_value(page, selector, value):
    """Moves a slider."""
    page.locator(selector).evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input', { bubbles: true })); }",
        str(value),
    )


def generate(page, prompt="a cat on the beach", seed=1):
    """Makes a picture, and waits until its words can be hovered."""
    page.fill("#prompt", prompt)
    page.fill("#seed", str(seed))
    page.click("#form-generate button[type=submit]")
    wait_for_maps(page, "source")


def invert(page):
    """Gives the page a photograph and inverts it."""
    page.click("#tab-photo")
    page.set_input_files("#file", PHOTO)
    page.wait_for_selector("#photo-preview:not([hidden])")
    page.fill("#photo-prompt", CAPTION)
    page.click("#form-invert button[type=submit]")
    wait_for_maps(page, "source")


def write_target(page, target):
    """Writes the new prompt, and waits until its words are drawn."""
    page.fill("#target", target)
    page.wait_for_function(
        "words => [...document.querySelectorAll('#alignment .row:last-of-type li')].map(li => li.textContent).join(' ')"
        " === words",
        arg=target.replace(",", ""),
    )


def edit(page, target):
    write_target(page, target)
    page.click("#form-edit button[type=submit]")
    wait_for_edit(page)


def choose_object(page, text):
    """Chooses an object, and waits until it is on the picture and has the focus."""
    if not page.locator("#objects").evaluate("details => details.open"):
        page.click("#objects summary")
    page.locator(".object-words button").get_by_text(text, exact=True).click()
    page.wait_for_selector(f".object-words button[value='{text}'][aria-pressed=true]")


def field(page, name):
    """A number of the only object that is chosen."""
    return page.get_by_role("spinbutton", name=name)


def wait_for_edit(page):
    page.wait_for_selector("#edit-progress .cancel", state="hidden")
    wait_for_maps(page, "edit")


def wait_for_maps(page, name):
    page.wait_for_selector(f"#{name}-view .inspector select")


def word(page, text, name="source"):
    return page.locator(f"#{name}-view .word").get_by_text(text, exact=True)


def heat(page, name="source"):
    """The pixels of the heat map, as a string that is equal for equal maps; None where none is shown."""
    canvas = page.locator(f"#{name}-view .heat")
    return canvas.evaluate("canvas => canvas.hidden ? null : canvas.toDataURL()")


def picture(page, name="source"):
    return page.locator(f"#{name}-view .left .picture img").get_attribute("src")
