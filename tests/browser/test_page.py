"""The page of `minip2p app`, used as a person uses it: with the mouse, the keyboard, a phone."""

import base64
import io
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from browser import (
    CAPTION,
    choose_object,
    edit,
    field,
    generate,
    heat,
    invert,
    picture,
    set_value,
    wait_for_edit,
    wait_for_maps,
    word,
    write_target,
)
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from web import served, unpack

from minip2p.web.app import make_app
from minip2p.web.export import export_page
from minip2p.web.limits import Limits
from minip2p.web.recipes import ModelSource

pytestmark = pytest.mark.browser

# --- 1 Generate


def test_a_picture_appears_step_by_step(page):
    previews = []
    page.expose_function("seen", lambda url: previews.append(url))
    page.evaluate("""new MutationObserver(() => {
        const image = document.querySelector('#source-view img');
        if (image?.src.startsWith('data:')) seen(image.src.slice(0, 40));
    }).observe(document.getElementById('source-view'), { subtree: true, childList: true, attributes: true })""")
    set_value(page, "#steps", 12)
    generate(page)
    assert previews
    assert "seed 1 · 12 steps" in page.locator("#source-view .facts").text_content()
    assert picture(page).endswith("picture.png")


def test_a_run_can_be_cancelled(page):
    set_value(page, "#steps", 100)
    page.click("#form-generate button[type=submit]")
    page.get_by_text(re.compile(r"source: step \d+ of 100")).wait_for()
    page.click("#source-progress .cancel")
    page.wait_for_selector("#source-progress .cancel", state="hidden")
    page.get_by_text("Cancelled.").wait_for()
    assert page.locator("#source-view .word, #source-view img").count() == 0  # nothing half done is left
    set_value(page, "#steps", 4)
    generate(page)  # the server is free again


def test_a_number_that_cannot_be_is_told_beside_its_field(page):
    generate(page)
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    fields = [
        ("seed", "", "0"),
        ("seed", "99999999999999999999", "1"),
        ("x-values", "0, a", "0, 1"),
        ("y-values", "", "1"),
    ]
    for name, wrong, right in fields:
        field = page.locator(f"#{name}")
        field.fill(wrong)
        page.locator("form", has=field).locator("button[type=submit]").click()
        assert field.evaluate("input => input.validationMessage")
        assert field.evaluate("input => input === document.activeElement")
        field.fill(right)
        assert not field.evaluate("input => input.validationMessage")
    assert not requests


# --- 2 See


def test_a_word_shows_where_it_looks_without_a_request(page):
    generate(page)
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    word(page, "cat").hover()
    cat = heat(page)
    word(page, "beach").hover()
    beach = heat(page)
    assert cat and beach and cat != beach
    assert "“beach”" in page.locator("#source-view .legend").text_content()
    page.mouse.move(2, 2)
    assert heat(page) is None
    word(page, "cat").click()  # the map stays
    page.mouse.move(2, 2)
    assert heat(page) == cat
    assert not requests


def test_hovering_is_quick(page):
    generate(page)
    milliseconds = page.evaluate("""() => {
        const words = [...document.querySelectorAll('#source-view .word')];
        const times = [];
        for (let n = 0; n < 50; n++) {
            const start = performance.now();
            words[n % words.length].dispatchEvent(new PointerEvent('pointerenter'));
            times.push(performance.now() - start);
        }
        return times.sort((a, b) => a - b)[25];
    }""")
    assert milliseconds < 30


def test_layer_head_and_step_can_be_chosen(page):
    generate(page)
    word(page, "cat").click()
    page.mouse.move(2, 2)
    shown = {heat(page)}
    for control, value in (("layer", "site:0"), ("head", "1"), ("layer", "size:2"), ("layer", "all")):
        page.select_option(f"#source-view-{control}", value)
        shown.add(heat(page))
    set_value(page, "#source-view-step", 1)
    shown.add(heat(page))
    assert len(shown) == 6 and None not in shown


def test_a_pixel_ranks_the_words_and_their_shares_sum_to_one(page):
    generate(page)
    page.locator("#source-view .inspector input[type=checkbox]").check()
    place = page.locator("#source-view .picture")
    place.hover(position={"x": 40, "y": 40})
    shares = page.locator("#source-view .ranks .share").all_text_contents()
    names = page.locator("#source-view .ranks .name").all_text_contents()
    assert {"cat", "beach", "start", "end", "padding"} <= set(names)
    total = sum(float(share.removesuffix(" %").removeprefix("< ")) for share in shares)
    assert total == pytest.approx(100, abs=4)


def test_a_click_shows_what_a_place_looks_at(page):
    generate(page)
    place = page.locator("#source-view .picture")
    place.click(position={"x": 60, "y": 60})
    first = heat(page)
    assert "looks at" in page.locator("#source-view .legend").text_content()
    place.click(position={"x": 200, "y": 220})
    second = heat(page)
    assert second not in (None, first)
    page.select_option("#source-view-layer", "site:2")  # the mark stays, and shows the self-attention of that layer
    assert heat(page) not in (None, second)
    page.mouse.move(2, 2)
    assert page.locator("#source-view .ranks .name").count() > 3  # the words at the marked place


def test_maps_and_rankings_are_those_that_the_server_has_sent(page):
    """Of a step and a head, of all layers, what a place looks at, and the words under the pointer."""
    generate(page)
    u, v = 0.2, 0.7
    run = picture(page).split("/")[-2]
    drawn = page.evaluate(
        """async ([run, u, v]) => {
            const { Maps } = await import('/static/maps.js');
            const maps = new Maps(await (await fetch(`/api/run/${run}/maps`)).arrayBuffer());
            const [one, all] = [{ layer: 'size:2', step: 2, head: 1 }, { layer: 'all', step: null, head: null }]
                .map((choice) => maps.select(choice));
            const look = maps.lookFrom(u, v, 'site:0').values;
            return { one: [...maps.token(one, 2)], all: [...maps.token(all, 2)], look: [...look] };
        }""",
        [run, u, v],
    )
    header, blocks = unpack(page.request.get(f"{page.url}api/run/{run}/maps").body())

    def at_site(site, cross=True):
        return blocks[site["place"], site["index"], cross]

    def square(site, shares):
        return shares.reshape(site["rows"], site["columns"], -1)

    middle = [site for site in header["cross"] if site["stride"] == 2]
    expected = sum(at_site(site)[2, 1, :, 2] for site in middle) / len(middle)
    np.testing.assert_allclose(drawn["one"], expected, atol=1e-6)
    finest = max(site["rows"] for site in header["cross"])
    means = [square(site, at_site(site).mean((0, 1))) for site in header["cross"]]
    enlarged = [mean.repeat(finest // len(mean), 0).repeat(finest // len(mean), 1) for mean in means]
    np.testing.assert_allclose(drawn["all"], np.mean(enlarged, 0)[..., 2].flatten(), atol=1e-6)
    first = header["cross"][0]
    query = int(v * first["rows"]) * first["columns"] + int(u * first["columns"])
    np.testing.assert_allclose(drawn["look"], at_site(first, cross=False)[query], atol=1e-6)

    page.select_option("#source-view-layer", "all")
    page.locator("#source-view .inspector input[type=checkbox]").check()
    place = page.locator("#source-view .picture")
    box = place.bounding_box()
    cat = np.mean(enlarged, 0)[..., 2]
    y, x = np.unravel_index(np.abs(cat - cat.T).argmax(), cat.shape)  # rows are not columns
    place.hover(position={"x": (x + 0.5) / finest * box["width"], "y": (y + 0.5) / finest * box["height"]})
    assert np.abs(cat - cat.T).max() > 0.05
    names, shown = (page.locator(f"#source-view .ranks .{part}").all_text_contents() for part in ("name", "share"))
    shares = {
        name: float(text.removesuffix(" %").removeprefix("< ")) / 100 for name, text in zip(names, shown, strict=True)
    }
    expected = {token["text"]: np.mean(enlarged, 0)[y, x, n] for n, token in enumerate(header["tokens"])}
    assert shares == pytest.approx(expected, abs=0.006) and names == sorted(expected, key=expected.get, reverse=True)


def test_words_that_the_model_does_not_know_are_marked(page):
    generate(page, "a platypus on the beach")
    assert word(page, "platypus").get_attribute("title")
    assert not word(page, "beach").get_attribute("title")
    assert "platypus" in page.locator("#source-view .note").text_content()


# --- 3 Edit


def test_words_are_aligned_by_lines(page):
    generate(page)
    write_target(page, "a tiger on the beach")
    assert page.locator("#alignment path").count() == 5
    assert page.locator("#alignment li.changed").all_text_contents() == ["tiger"]
    write_target(page, "a cat on the beach in the fog")
    assert page.locator("#alignment path").count() == 5
    assert page.locator("#alignment li.changed").all_text_contents() == ["in", "the", "fog"]


def test_an_edit_follows_the_slider_and_the_source_never_runs_again(page):
    generate(page)
    set_value(page, "#cross", 0.8)
    edit(page, "a tiger on the beach")
    first = picture(page, "edit")
    set_value(page, "#self", 1)
    page.wait_for_function(
        "before => document.querySelector('#edit-view .left img')?.getAttribute('src') !== before", arg=first
    )
    wait_for_edit(page)
    facts = page.locator("#edit-view .facts").text_content()
    rows = int(re.search(r"(\d+) rows of the UNet", facts)[1])
    assert 0 < rows < 8  # the target's 4 steps with guidance take 8, and the source's as many


def test_the_last_position_of_a_slider_wins_also_before_the_first_edit_is_there(page):
    generate(page)
    write_target(page, "a tiger on the beach")
    page.route("**/api/edit", lambda route: None, times=1)  # the first edit takes long
    page.click("#form-edit button[type=submit]")
    page.wait_for_selector("#edit-progress .cancel")
    with page.expect_request(lambda sent: sent.url.endswith("/api/edit") and sent.post_data_json["cross"] == 0.25):
        set_value(page, "#cross", 0.25)
    wait_for_edit(page)


def test_weights_blend_comparison_and_difference(page):
    generate(page)
    write_target(page, "a tiger on the beach")
    page.click("#weights summary")
    page.click("#limits summary")
    set_value(page, "#weight-1", 2)
    for text in ("cat", "tiger"):
        page.locator("#blend-words button").get_by_text(text, exact=True).click()
    page.check("#compare")
    with page.expect_request("**/api/edit") as sent:
        page.click("#form-edit button[type=submit]")
    body = sent.value.post_data_json
    assert body["weights"] == {"tiger": 2} and body["blend"] == {"source": ["cat"], "target": ["tiger"]}
    assert body["compare"] and not body["paste"]
    wait_for_edit(page)
    stage = page.locator(".comparison .picture img:not(.before)")
    sources = set()
    for name in ("Before | after", "Before | without", "Difference", "Mask"):
        page.locator(".comparison button").get_by_text(name, exact=True).click()
        sources.add(stage.get_attribute("src"))
    assert len(sources) == 4


def test_before_and_after_under_the_pointer(page):
    generate(page)
    edit(page, "a tiger on the beach")
    stage = page.locator(".comparison .picture")
    width = stage.bounding_box()["width"]
    stage.hover(position={"x": width * 0.25, "y": 50})
    clip = page.locator(".comparison .before").evaluate("image => image.style.clipPath")
    assert 70 <= float(clip.split()[1].removesuffix("%")) <= 80


def region_of(request):
    region = request.post_data_json["region"]
    return np.frombuffer(base64.b64decode(region["cells"]), np.uint8).reshape(region["rows"], region["columns"])


def test_a_region_is_drawn_with_the_brush(page):
    generate(page)
    write_target(page, "a tiger on the beach")
    page.click("#limits summary")
    page.click("#brush")
    box = page.locator("#source-view .picture").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 80)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 100, steps=5)
    page.mouse.up()
    with page.expect_request("**/api/edit") as sent:
        page.click("#form-edit button[type=submit]")
    rows, columns = region_of(sent.value).nonzero()
    assert rows.mean() == pytest.approx(64 * 90 / box["height"], abs=2)
    assert columns.mean() == pytest.approx(64 * 110 / box["width"], abs=2) and np.ptp(columns) > 1.5 * np.ptp(rows)
    wait_for_edit(page)
    page.click("#brush-clear")
    assert page.locator("#brush-clear").is_hidden()


def test_a_region_is_drawn_with_the_keyboard_and_a_screen_reader_hears_it(page):
    generate(page)
    write_target(page, "a tiger on the beach")
    page.focus("#limits summary")
    page.keyboard.press("Enter")
    page.focus("#brush")
    page.keyboard.press("Enter")
    canvas = page.get_by_role("application", name="The region")
    assert canvas.evaluate("canvas => canvas === document.activeElement")
    cursor = page.locator(".brush-cursor")
    before = cursor.bounding_box()
    for key in ("+", "+", "-", "+", "Shift+ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
    status = page.locator("#status")
    assert status.text_content() == "brush 10 wide, 38 % from the left, 48 % from the top: the region is empty"
    after = cursor.bounding_box()
    assert after["width"] == pytest.approx(before["width"] * 10 / 8, abs=1) and after["x"] < before["x"] - 20
    page.keyboard.down(" ")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.up(" ")
    assert status.text_content().endswith("44 % from the left, 48 % from the top: in the region")
    page.keyboard.press("Shift+ArrowDown")  # Space is up
    assert status.text_content().endswith("outside of the region")
    with page.expect_request("**/api/edit") as sent:
        page.click("#form-edit button[type=submit]")
    rows, columns = region_of(sent.value).nonzero()
    assert abs(rows.min() - 26) <= 1 and abs(rows.max() - 35) <= 1
    assert abs(columns.min() - 19) <= 1 and abs(columns.max() - 32) <= 1
    wait_for_edit(page)
    canvas.focus()
    with page.expect_request("**/api/edit") as sent:
        page.keyboard.press("Escape")
    assert sent.value.post_data_json["region"] is None and page.locator("#brush-clear").is_hidden()
    page.click("#limits summary")  # the brush of a closed panel does not draw
    page.locator('#brush[aria-pressed="false"]').wait_for(state="attached")  # the panel tells it a moment later
    page.locator("#source-view .picture").hover(position={"x": 40, "y": 40})
    assert page.locator("#source-view .ranks .name").count() > 3


def test_a_closed_panel_says_what_is_set_in_it_and_resets_it(page):
    generate(page)
    write_target(page, "a tiger on the beach")
    resets = page.locator(".panel .reset")
    assert not any(resets.nth(n).is_visible() for n in range(3))
    for panel in ("weights", "limits"):
        page.click(f"#{panel} summary")
    set_value(page, "#weight-1", 2)
    set_value(page, "#weight-4", -1)
    for text in ("cat", "tiger"):
        page.locator("#blend-words button").get_by_text(text, exact=True).click()
    page.check("#paste")
    choose_object(page, "cat")
    titles = page.locator(".panel summary .set")
    for panel in ("weights", "limits", "objects"):
        page.click(f"#{panel} summary")
    assert titles.all_text_contents() == ["tiger 2, beach -1", "cat", "cat, tiger, original pixels"]
    for name in ("Reset the weights", "Reset the part that changes", "Reset the objects"):
        page.get_by_role("button", name=name).click()
    assert titles.all_text_contents() == ["", "", ""]
    with page.expect_request("**/api/edit") as sent:
        page.click("#form-edit button[type=submit]")
    body = sent.value.post_data_json
    assert (body["weights"], body["blend"], body["objects"], body["paste"]) == ({}, None, [], False)
    assert page.locator(".objects .object").count() == 0
    wait_for_edit(page)


def test_an_edit_has_the_words_of_the_prompt_as_it_is(page):
    """Also where it begins before the words of the new prompt are listed."""
    generate(page)
    write_target(page, "a tiger on the beach")
    set_value(page, "#weight-1", 2)
    page.click("#limits summary")
    page.locator("#blend-words button").get_by_text("tiger", exact=True).click()
    with page.expect_request("**/api/edit") as sent:
        page.evaluate("""() => {
            const target = document.getElementById('target');
            target.value = 'a lion on the beach';
            target.dispatchEvent(new Event('input', { bubbles: true }));
            document.getElementById('form-edit').requestSubmit();
        }""")
    body = sent.value.post_data_json
    assert (body["target"], body["weights"], body["blend"]) == ("a lion on the beach", {}, None)
    wait_for_edit(page)
    assert page.locator("#alert").is_hidden()


def test_an_edit_can_be_edited_again(page):
    generate(page)
    edit(page, "a tiger on the beach")
    page.locator("#edit-view .home button").get_by_text("Edit this picture").click()
    page.wait_for_function("() => document.querySelector('#source-view .words')?.textContent.includes('tiger')")
    assert page.input_value("#target") == "a tiger on the beach"
    tiger = picture(page)
    page.reload()
    wait_for_maps(page, "source")
    assert picture(page) == tiger and page.locator("#edit-view *").count() == 0
    edit(page, "a lion on the beach")


def test_an_edit_that_fails_leaves_the_last_one(page):
    generate(page)
    edit(page, "a tiger on the beach")
    after = page.locator(".comparison .picture img:not(.before)")
    url = after.get_attribute("src")
    step = {
        "type": "step",
        "phase": "edit",
        "step": 1,
        "steps": 2,
        "preview": "data:image/gif;base64,R0lGODlhAQABAAAAACw=",
    }
    for last, message in (({"type": "error", "error": "too large"}, "too large"), (step, "The server has stopped")):
        events = "".join(f"data: {json.dumps(event)}\n\n" for event in (step, last))
        page.route(
            "**/api/edit",
            lambda route, request, events=events: route.fulfill(content_type="text/event-stream", body=events),
        )
        page.click("#form-edit button[type=submit]")
        page.locator("#alert").get_by_text(message).wait_for()
        assert after.get_attribute("src") == url
        page.unroute("**/api/edit")


def test_an_edit_of_the_picture_before_is_not_shown(page):
    generate(page)
    edit(page, "a tiger on the beach")
    set_value(page, "#steps", 12)
    page.click("#form-generate button[type=submit]")
    page.locator("#source-view img[alt='The picture so far']").wait_for()
    set_value(page, "#cross", 0.3)  # an edit, which waits until the new picture is done
    page.locator("#edit-progress").get_by_text("waiting: 1 before this").wait_for()
    wait_for_maps(page, "source")
    page.wait_for_selector("#edit-progress .cancel", state="hidden")
    page.wait_for_load_state("networkidle")
    assert page.locator("#edit-view *").count() == 0


# --- 3b Objects that are moved


def wait_for_request_and_edit(page):
    """Waits for the edit that a movement starts after a moment."""
    page.wait_for_selector("#edit-progress .cancel")
    wait_for_edit(page)


def objects_sent(page, act):
    """The objects of the request that something starts, when its edit is there."""
    with page.expect_request("**/api/edit") as sent:
        act()
    wait_for_edit(page)
    return sent.value.post_data_json["objects"]


def drag(page, box, x, y):
    """Drags what is at the middle of a box by so many pixels of the screen, in steps as a hand does."""
    at = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*at)
    page.mouse.down()
    page.mouse.move(at[0] + x, at[1] + y, steps=4)
    page.mouse.up()


def test_an_object_is_dragged_resized_doubled_removed_and_put_back_with_the_mouse(page):
    generate(page, "a cat and a house on grass", 7)
    choose_object(page, "cat")
    assert "hole" in page.locator(".objects path").first.get_attribute("class")
    zoom = page.locator("#source-view .picture").bounding_box()["width"] / 128
    border = page.locator(".objects .border")
    before = border.bounding_box()
    page.mouse.move(before["x"] + before["width"] / 2, before["y"] + before["height"] / 2)
    page.mouse.down()
    page.mouse.move(before["x"], before["y"], steps=2)
    assert border.bounding_box() != before
    page.keyboard.press("Escape")
    page.mouse.up()
    assert border.bounding_box() == before
    sent = objects_sent(page, lambda: drag(page, before, -20 * zoom, 4 * zoom))
    assert sent == [{"word": "cat", "kind": "move", "x": -20, "y": 4, "scale": 1}]
    after = border.bounding_box()
    assert after["x"] == pytest.approx(before["x"] - 20 * zoom, abs=2)
    assert page.locator(".objects image").is_visible() and page.locator(".objects .hole").is_visible()
    assert page.locator(".object-status span").text_content() == "cat: 20 left, 4 down"
    assert page.locator("#edit-view .comparison").is_visible()

    (sent,) = objects_sent(page, lambda: drag(page, page.locator(".handle .reach").bounding_box(), 12, 12))
    assert 1.05 < sent["scale"] < 2 and border.bounding_box()["width"] > after["width"]
    assert (sent["x"], sent["y"]) == (-20, 4) and float(field(page, "size").input_value()) == sent["scale"]

    sent = objects_sent(page, lambda: choose_object(page, "house"))  # which stays, and is in front
    assert [each["word"] for each in sent] == ["cat", "house"]
    assert page.locator(".objects image").last.is_visible()
    assert [row.get_attribute("aria-label") for row in page.locator(".object-rows > div").all()] == ["cat", "house"]
    cat = page.get_by_role("group", name="cat", exact=True)
    sent = objects_sent(page, lambda: cat.get_by_text("To the front").click())
    assert [each["word"] for each in sent] == ["house", "cat"]
    assert not page.locator(".objects image").first.is_visible()  # there is nothing behind it
    sent = objects_sent(page, lambda: cat.get_by_text("Remove").click())
    assert sent == [{"word": "house", "kind": "move", "x": 0, "y": 0, "scale": 1}, {"word": "cat", "kind": "remove"}]
    sent = objects_sent(page, lambda: cat.get_by_text("Put back").click())
    assert sent[1] == {"word": "cat", "kind": "move", "x": 0, "y": 0, "scale": 1}
    sent = objects_sent(page, lambda: drag(page, border.last.bounding_box(), -2000, 0))
    assert -128 < sent[1]["x"] < 0  # its centre stays in the picture
    objects_sent(page, lambda: cat.get_by_text("Put back").click())
    sent = objects_sent(page, lambda: cat.get_by_text("Duplicate").click())
    assert (
        sent[1]["kind"] == "duplicate"
        and abs(sent[1]["x"]) == 43
        and not page.locator(".objects .hole").last.is_visible()
    )
    sent = objects_sent(page, lambda: page.locator(".object-words button").get_by_text("house", exact=True).click())
    assert [each["word"] for each in sent] == ["cat"]
    page.locator("#edit-view .home button").get_by_text("Code").click()
    page.wait_for_selector("#recipe[open]")
    assert "duplicate={'cat': (" in page.locator("#recipe-python").text_content()
    assert "--duplicate=cat:" in page.locator("#recipe-command").text_content()


def test_objects_that_are_chosen_at_once_are_all_chosen(page):
    generate(page, "a cat and a house on grass", 7)
    page.click("#objects summary")
    page.evaluate("['cat', 'house'].forEach((word) => document.querySelector(`.object-words [value=${word}]`).click())")
    for text in ("cat", "house"):
        page.wait_for_selector(f".object-words [value={text}][aria-pressed=true]")


def test_an_object_is_moved_with_the_keyboard_and_a_screen_reader_hears_it(page):
    generate(page)
    page.focus("#objects summary")
    page.keyboard.press("Enter")
    page.locator(".object-words button").get_by_text("cat", exact=True).focus()
    page.keyboard.press("Enter")
    shape = page.get_by_role("application")
    shape.wait_for()
    assert shape.evaluate("shape => shape === document.activeElement")
    for key in ("ArrowRight", "Shift+ArrowDown", "Shift+ArrowDown", "+", "-", "+"):
        page.keyboard.press(key)
    page.get_by_role("status").get_by_text("cat: 1 right, 16 down, size 1.05").wait_for(state="attached")
    wait_for_request_and_edit(page)
    assert shape.get_attribute("aria-label") == "cat: 1 right, 16 down, size 1.05"
    (sent,) = objects_sent(page, lambda: page.keyboard.press("Delete"))
    assert sent == {"word": "cat", "kind": "remove"} and shape.get_attribute("aria-label") == "cat: removed"
    assert shape.evaluate("shape => shape === document.activeElement")
    (sent,) = objects_sent(page, lambda: page.get_by_text("Put back").press("Enter"))
    assert (sent["kind"], sent["x"]) == ("move", 0)
    (sent,) = objects_sent(page, lambda: field(page, "down").fill("-8.5"))
    assert (sent["x"], sent["y"]) == (0, -8.5)
    for text, value in (("99", "10"), ("", "10"), ("0.01", "0.1")):
        field(page, "size").fill(text)
        page.keyboard.press("Tab")
        assert field(page, "size").input_value() == value
        page.get_by_role("status").get_by_text(f"is a number from 0.1 to 10: it is {value} now").wait_for()


def test_an_object_without_a_place_and_a_new_place_outside_are_one_line(page):
    generate(page)
    page.click("#objects summary")
    words = page.locator(".object-words button")
    assert words.all_text_contents() == ["cat", "beach"]
    words.last.click()
    page.locator("#alert").get_by_text("'beach' has no place").wait_for()
    assert words.last.get_attribute("aria-pressed") == "false" and page.locator(".object-rows > div").count() == 0
    choose_object(page, "cat")
    assert page.locator("#alert").is_hidden()
    field(page, "right").fill("500")
    page.get_by_text("the new place of 'cat', by (500, 0) pixels at scale 1, is outside of the picture").wait_for()


# --- 4 Photographs


def test_a_photograph_is_inverted_and_edited(page):
    invert(page)
    assert "dB" in page.locator("#source-view .facts").text_content()
    shown = page.locator("#source-view .left .picture img")
    page.locator("#source-view button").get_by_text("Show the photograph itself").click()
    assert shown.get_attribute("src").endswith("original.png")
    page.click("#limits summary")
    write_target(page, CAPTION.replace("blue", "green"))
    page.locator("#blend-words button").get_by_text("umbrella", exact=True).click()
    page.check("#paste")
    page.click("#form-edit button[type=submit]")
    wait_for_edit(page)
    page.locator(".comparison button").get_by_text("Mask", exact=True).wait_for()
    choose_object(page, "lamp")
    (sent,) = objects_sent(page, lambda: page.keyboard.press("Shift+ArrowLeft"))
    assert (sent["word"], sent["x"]) == ("lamp", -8)


def test_what_is_no_photograph_is_refused_in_one_line(page, tmp_path):
    (tmp_path / "notes.png").write_text("<b>not a picture</b>")
    page.click("#tab-photo")
    page.set_input_files("#file", tmp_path / "notes.png")
    page.locator("#alert").wait_for()
    assert "\n" not in page.locator("#alert").text_content()
    assert page.locator("#alert b").count() == 0


def test_edits_in_few_steps_follow_a_slider_that_is_dragged(page):
    page.click("#tab-photo")
    page.select_option("#method", "virtual")
    assert page.input_value("#photo-steps") == "15"
    page.select_option("#method", "ddim")
    assert page.input_value("#photo-steps") == "4"  # as before
    page.select_option("#method", "virtual")
    invert(page)
    edit(page, CAPTION.replace("blue", "green"))
    sent = []
    page.on(
        "request", lambda request: request.url.endswith("/api/edit") and sent.append(request.post_data_json["cross"])
    )
    page.evaluate("""() => {
        window.shown = [];
        new MutationObserver(() => {
            const { src } = document.querySelector('.compare img:not(.before)') ?? {};
            if (src?.endsWith('picture.png') && src !== shown.at(-1)) shown.push(src);
        }).observe(document.getElementById('edit-view'), { subtree: true, childList: true, attributes: true });
    }""")
    for value in (0.2, 0.4, 0.6):
        set_value(page, "#cross", value)
    page.wait_for_function("() => shown.length === 2")
    wait_for_maps(page, "edit")
    runs = [url.split("/")[-2] for url in page.evaluate("shown")]
    assert sent == [0.2, 0.6]
    assert [page.request.get(f"{page.url}api/run/{run}").json()["settings"]["cross"] for run in runs] == [0.2, 0.6]
    assert picture(page, "edit").split("/")[-2] == runs[1]


# --- 5 Grid


def test_a_grid_fills_and_its_cells_open(page):
    generate(page)
    page.fill("#x-values", "0, 2, -1")
    page.click("#form-grid button[type=submit]")
    page.locator("#alert").wait_for()
    assert page.locator("#alert").bounding_box()["y"] >= 0 and page.locator("#sheet *").count() == 0
    write_target(page, "a tiger on the beach")
    page.fill("#x-values", "0, 1")
    page.fill("#y-values", "0, 0.5")
    page.click("#form-grid button[type=submit]")
    page.wait_for_function("() => document.querySelectorAll('#sheet img').length === 4")
    page.wait_for_selector("#grid-progress .cancel", state="hidden")
    page.locator("#sheet button").nth(3).click()
    page.locator("#edit-view .comparison").wait_for()
    assert (page.input_value("#cross"), page.input_value("#self")) == ("1", "0.5")


# --- 6 Take home


def test_files_and_code_can_be_taken_home_and_a_picture_brings_its_settings_back(page, server, new_page, tmp_path):
    generate(page, "a red car on the street", 5)
    links = page.locator("#source-view .home a")
    files = {}
    for n in range(links.count()):
        with page.expect_download() as download:
            links.nth(n).click()
        files[download.value.suggested_filename] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[download.value.suggested_filename])
    stem = "a-red-car-on-the-street-seed5"
    assert set(files) == {f"{stem}.png", f"{stem}.gif", f"{stem}.safetensors"}
    assert "a red car on the street" in Image.open(files[f"{stem}.png"]).info["parameters"]
    assert Image.open(files[f"{stem}.gif"]).n_frames == 4
    page.locator("#source-view .home button").get_by_text("Code").click()
    page.wait_for_selector("#recipe[open]")
    assert "pipe.generate(" in page.locator("#recipe-python").text_content()
    assert "minip2p generate" in page.locator("#recipe-command").text_content()
    page.locator("#recipe button.primary").click()
    # In another page it brings everything back.
    other = new_page(server)
    drop(other, files[f"{stem}.png"])
    wait_for_maps(other, "source")
    assert other.input_value("#prompt") == "a red car on the street"
    assert (other.input_value("#seed"), other.input_value("#steps")) == ("5", "4")
    drop(other, files[f"{stem}.safetensors"])
    other.get_by_text("This page opens no run files").wait_for()


def test_settings_that_the_page_does_not_have_are_told(page, tmp_path):
    info = PngInfo()
    info.add_text("parameters", "a cat on the beach\nNegative prompt: fog\nSteps: 4, CFG scale: 4.1, Seed: 1")
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png", pnginfo=info)
    drop(page, tmp_path / "cat.png")
    page.get_by_text(
        "Not all of its settings are here: guidance is 4 instead of 4.1; its negative prompt is missing."
    ).wait_for()
    wait_for_maps(page, "source")
    edit_info = 'Steps: 4, CFG scale: 4.0, Seed: 1, Source: a cat on the beach, Cross: "0.8, cat=0.4", Self: 0.4'
    info = PngInfo()
    info.add_text("parameters", f"a tiger on the beach\n{edit_info}, Reweight: the beach=2, Blend: lion")
    Image.new("RGB", (8, 8)).save(tmp_path / "tiger.png", pnginfo=info)
    drop(page, tmp_path / "tiger.png")
    page.get_by_text(
        "Not all of its settings are here: cross is the default; the weight of “the beach” is missing; "
        "“lion” of the blend is missing."
    ).wait_for()


def test_the_picture_of_an_edit_brings_its_source_and_the_edit_back(page, server, new_page, tmp_path):
    generate(page)
    set_value(page, "#cross", 0.4)
    choose_object(page, "cat")
    page.keyboard.press("Shift+ArrowLeft")
    wait_for_request_and_edit(page)
    write_target(page, "a tiger on the beach")
    page.click("#form-edit button[type=submit]")
    wait_for_edit(page)
    with page.expect_download() as download:
        page.locator("#edit-view .home a").first.click()
    download.value.save_as(tmp_path / "edit.png")
    other = new_page(server)
    drop(other, tmp_path / "edit.png")
    wait_for_maps(other, "edit")
    assert other.input_value("#prompt") == "a cat on the beach"
    assert (other.input_value("#target"), other.input_value("#cross")) == ("a tiger on the beach", "0.4")
    assert field(other, "right").input_value() == "-8"
    assert pixels(other, "edit") == pixels(page, "edit")
    other.locator("#weight-4").evaluate("slider => { slider.value = 2; }")  # which the picture does not have
    with other.expect_request("**/api/edit") as sent:
        drop(other, tmp_path / "edit.png")
    assert sent.value.post_data_json["weights"] == {}


def test_back_and_forward_bring_the_run_and_its_edit_back(page):
    generate(page)
    choose_object(page, "cat")
    page.keyboard.press("Shift+ArrowLeft")
    wait_for_request_and_edit(page)
    page.click("#limits summary")
    page.click("#brush")
    page.keyboard.press("Space")
    wait_for_request_and_edit(page)
    region = page.locator("canvas.region")
    drawn = """canvas => [...canvas.getContext('2d').getImageData(0, 0, 64, 64).data]
        .filter((value, n) => n % 4 === 3).map((alpha) => alpha > 127)"""
    cells = region.evaluate(drawn)
    assert any(cells)
    shown = picture(page), picture(page, "edit")
    page.goto("about:blank")
    page.go_back()
    wait_for_maps(page, "edit")
    assert (picture(page), picture(page, "edit")) == shown
    assert field(page, "right").input_value() == "-8" and region.evaluate(drawn) == cells
    page.reload()
    wait_for_maps(page, "edit")
    assert (picture(page), picture(page, "edit")) == shown


@pytest.fixture
def forgetful(small_model, new_page):
    """A page, and a function that makes its server forget all pictures."""
    app = make_app(small_model)
    with served(app, Limits()) as port:
        opened = new_page(f"http://127.0.0.1:{port}/")
        for steps in ("#steps", "#photo-steps"):
            set_value(opened, steps, 2)
        studio = app.state.site.studio

        def forget():
            for shelf in (studio.runs, studio.photos, studio.maps, studio.live):
                shelf.values.clear()

        yield opened, forget
        opened.close()


def make_again(page):
    """What the page offers where the server has forgotten a picture. Waits for the edit."""
    alert = page.locator("#alert")
    alert.get_by_text("no longer has this one").wait_for()
    assert "\n" not in alert.text_content()
    shown = "() => document.querySelector('#source-view .left .picture img')?.src"
    before = page.evaluate(shown)
    alert.get_by_role("button", name="Make it again").click()
    page.wait_for_function(f"before => ![undefined, before].includes(({shown})())", arg=before)
    wait_for_maps(page, "source")
    wait_for_edit(page)


def test_a_picture_that_the_server_has_forgotten_is_made_again_as_it_was(forgetful):
    page, forget = forgetful
    generate(page)
    write_target(page, "a tiger on the beach")
    set_value(page, "#weight-1", 2)
    set_value(page, "#cross", 0.5)
    page.click("#form-edit button[type=submit]")
    wait_for_edit(page)
    before = pixels(page, "source"), pixels(page, "edit")
    forget()
    page.click("#form-edit button[type=submit]")
    make_again(page)
    assert (pixels(page, "source"), pixels(page, "edit")) == before
    # A file of it, the code, a comparison, and a page that is opened again.
    for act in (
        lambda: page.locator("#edit-view .home a").get_by_text("PNG").click(),
        lambda: page.locator("#source-view .home a").get_by_text("Animation").click(),
        lambda: page.locator("#edit-view .home button").get_by_text("Code").click(),
        lambda: page.locator(".comparison button").get_by_text("Difference").click(),
        page.reload,
    ):
        forget()
        act()
        make_again(page)
        assert (pixels(page, "source"), pixels(page, "edit")) == before
        assert (page.input_value("#target"), page.input_value("#cross")) == ("a tiger on the beach", "0.5")
    # An edit of the edit.
    page.locator("#edit-view .home button").get_by_text("Edit this picture").click()
    wait_for_maps(page, "source")
    edit(page, "a lion on the beach")
    before = pixels(page, "source"), pixels(page, "edit")
    forget()
    set_value(page, "#self", 0.4)
    make_again(page)
    assert (pixels(page, "source"), pixels(page, "edit")) == before


def test_a_photograph_that_the_server_has_forgotten_is_uploaded_again(forgetful):
    page, forget = forgetful
    invert(page)
    before = pixels(page, "source")
    forget()
    page.click("#form-invert button[type=submit]")
    page.locator("#alert").get_by_text("no longer has this photograph").wait_for()
    page.get_by_role("button", name="Upload it again").click()
    page.wait_for_selector("#alert", state="hidden")
    wait_for_maps(page, "source")
    page.wait_for_load_state("networkidle")
    assert pixels(page, "source") == before
    forget()
    edit_prompt = CAPTION.replace("blue", "green")
    write_target(page, edit_prompt)
    page.click("#form-edit button[type=submit]")
    make_again(page)
    assert pixels(page, "source") == before and page.input_value("#target") == edit_prompt
    forget()
    page.reload()  # after which the page does not have the file
    page.locator("#alert").get_by_text("no longer has this one: choose the photograph again.").wait_for()
    assert page.locator("#alert button").count() == 0


def pixels(page, name):
    content = page.request.get(page.url + picture(page, name).lstrip("/")).body()
    return Image.open(io.BytesIO(content)).tobytes()


def drop(page, file):
    """Drops a file on the page."""
    data = page.evaluate_handle(
        """([bytes, name]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name));
            return data;
        }""",
        [list(file.read_bytes()), file.name],
    )
    page.dispatch_event("#source", "drop", {"dataTransfer": data})


# --- 7 Keyboard, screen readers, phones, dark


def test_everything_works_with_the_keyboard(page):
    page.focus("#prompt")
    page.keyboard.press("Enter")
    page.wait_for_selector("#source-view .inspector select")
    word(page, "pig").focus()
    assert heat(page)
    page.focus("#source-view .picture")
    assert heat(page) is None
    page.keyboard.press("ArrowRight")
    assert page.locator("#source-view .ranks .name").count() > 3
    page.keyboard.press("Enter")
    assert "looks at" in page.locator("#source-view .legend").text_content()
    page.keyboard.press("Escape")
    assert heat(page) is None
    page.focus("#tab-prompt")
    page.keyboard.press("ArrowRight")
    assert page.locator("#form-invert").is_visible()


def test_all_controls_have_names(page):
    generate(page)
    edit(page, "a tiger on the beach")
    choose_object(page, "cat")
    for details in ("#weights summary", "#limits summary"):
        page.click(details)
    nameless = page.evaluate("""() => [...document.querySelectorAll('input, select, button, a, img')]
        .filter((element) => element.checkVisibility())
        .filter((element) => !(element.labels?.length || element.getAttribute('aria-label')
            || element.textContent.trim() || element.alt || element.title))
        .map((element) => element.outerHTML)""")
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(server, new_page, scheme):
    opened = new_page(server, color_scheme=scheme)
    ratios = opened.evaluate("""() => {
        const style = getComputedStyle(document.documentElement);
        const colour = (name) => {
            const context = document.createElement('canvas').getContext('2d');
            context.fillStyle = style.getPropertyValue(`--${name}`);
            context.fillRect(0, 0, 1, 1);
            const linear = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3)
                .map((value) => value / 255)
                .map((value) => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4);
            return .2126 * linear[0] + .7152 * linear[1] + .0722 * linear[2];
        };
        const pairs = [['ink', 'paper'], ['ink', 'panel'], ['soft', 'panel'], ['soft', 'paper'],
            ['accent-ink', 'accent'], ['accent', 'tint'], ['warn', 'warn-paper']];
        return pairs.map(([a, b]) => {
            const [dark, light] = [colour(a), colour(b)].sort((x, y) => x - y);
            return [`${a} on ${b}`, (light + .05) / (dark + .05)];
        });
    }""")
    assert all(ratio >= 4.5 for _, ratio in ratios), ratios


def test_a_phone_is_wide_enough(server, new_page):
    opened = new_page(server, viewport={"width": 360, "height": 740}, has_touch=True)
    set_value(opened, "#steps", 4)
    generate(opened)
    edit(opened, "a tiger on the beach in the fog")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    word(opened, "cat").tap()
    assert heat(opened)
    choose_object(opened, "cat")
    opened.locator(".objects .border").hover()  # which waits for the page to stop scrolling
    box = opened.locator(".objects .border").bounding_box()
    finger = opened.context.new_cdp_session(opened)
    for kind, x in (("touchStart", 0), ("touchMove", 20), ("touchMove", 40), ("touchEnd", 40)):
        points = (
            [{"x": box["x"] + box["width"] / 2 + x, "y": box["y"] + box["height"] / 2}] if kind != "touchEnd" else []
        )
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    wait_for_request_and_edit(opened)
    assert int(field(opened, "right").input_value()) > 8
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360


def test_colours_follow_the_system_and_the_button(server, new_page):
    opened = new_page(server, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = opened.evaluate(background)
    opened.click("#theme")
    light = opened.evaluate(background)
    opened.click("#theme")
    assert opened.evaluate(background) == dark != light


# --- 8 Static export


@pytest.fixture(scope="module")
def exported(small_model, tmp_path_factory):
    """The address of an exported page, on a server that knows nothing of minip2p."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path_factory.mktemp("export") / "page"
    recipe = ModelSource(("pipe = minip2p.load()",), ())
    with ThreadPoolExecutor(1) as pool:  # Playwright has an event loop in this thread
        pool.submit(export_page, small_model, folder, recipe, steps=2, report=lambda line: None).result()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()


def test_the_exported_page_works_without_python(exported, new_page):
    opened = new_page(exported)
    opened.wait_for_selector("#edit-view .inspector select")
    assert not opened.locator("#objects").is_visible() and opened.locator(".objects *").count() == 2
    word(opened, "pig").hover()
    assert heat(opened)
    before = picture(opened, "edit")
    set_value(opened, "#cross", 0)
    opened.wait_for_function(
        "old => document.querySelector('#edit-view .left img').getAttribute('src') !== old", arg=before
    )
    word(opened, "sheep", "edit").hover()
    assert heat(opened, "edit")
    opened.locator("#edit-view .home button").get_by_text("Code").click()
    assert "cross_replace=0.0, self_replace=0.4" in opened.locator("#recipe-python").text_content()
    opened.locator("#recipe button.primary").click()
    set_value(opened, "#cross", 0.35)  # which was not computed
    assert opened.input_value("#cross") == "0.4" and opened.locator("#x-name option").count() == 2
    opened.fill("#x-values", "0, 0.5")
    opened.click("#form-grid button[type=submit]")
    opened.get_by_text("These examples have cross τ 0, 0.2, 0.4, 0.6, 0.8, 1: choose among them.").wait_for()
    opened.fill("#x-values", "0, 0.4, 0.8")
    opened.select_option("#prompt", "1")
    opened.wait_for_function("() => document.querySelector('#source-view .words').textContent.includes('car')")
    opened.wait_for_function("() => document.querySelectorAll('.comparison button').length >= 2")  # it has a mask
    opened.click("#form-grid button[type=submit]")
    opened.wait_for_function("() => document.querySelectorAll('#sheet img').length === 9")
    image = opened.request.get(opened.locator("#sheet img").first.evaluate("image => image.src")).body()
    assert Image.open(io.BytesIO(image)).size == (64, 64)
