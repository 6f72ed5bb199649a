//! The page, in a headless browser.

use crate::browser::Tab;
use crate::client::{Server, run};
use serde_json::json;

/// The settled picture of a pane.
const PICTURE: &str = "document.querySelector('[data-letter=A] .grid').src";

/// Waits until the pane shows the result of its newest request.
fn settle(tab: &mut Tab, letter: &str) {
    tab.wait(&format!(
        "document.querySelector('[data-letter={letter}]:not(.stale) .grid[src]') && \
         document.querySelector('[data-letter={letter}] figcaption').textContent.includes('per image')"
    ));
}

#[test]
fn the_page_is_played_by_mouse_keyboard_and_phone() {
    let Some(mut tab) = Tab::open() else {
        goldens::skipped("the_page_is_played_by_mouse_keyboard_and_phone", "Chromium is not installed");
        return;
    };
    let server = Server::start(&[run(), &run().join("checkpoints/step-000000015.safetensors")]);
    tab.call("Page.navigate", json!({ "url": format!("http://{}/", server.address) }));
    tab.wait("document.querySelector('[data-letter=A]')");
    settle(&mut tab, "A");
    let first = tab.value(PICTURE);

    // The keyboard moves the slider of the scale, and the picture follows.
    tab.value("document.querySelector('[data-letter=A] [data-id=guide] input[type=range]').focus()");
    for _ in 0..10 {
        tab.press("ArrowRight", 39);
    }
    settle(&mut tab, "A");
    assert_eq!(tab.value("document.activeElement.value"), "2.5");
    let second = tab.value(PICTURE);
    assert_ne!(first, second);
    tab.wait("document.querySelectorAll('[data-letter=A] [data-id=guide] input[type=number]')[1].value === '0.4'");
    assert!(tab.value("document.querySelector('[data-letter=A] .grid').alt").as_str().unwrap().contains("scale 2.5"));

    // A scale that the network was not trained at shows the words of the refusal.
    let number = "document.querySelector('[data-letter=A] [data-id=guide] input[type=number]')";
    let enter = |value: &str| format!("{number}.value = '{value}'; {number}.dispatchEvent(new Event('input'))");
    tab.value(&enter("0.5"));
    tab.wait(
        "document.querySelector('[data-letter=A] .problem:not([hidden])')?.textContent.includes('does not train it')",
    );
    tab.value(&enter("2"));
    settle(&mut tab, "A");
    assert_eq!(tab.value(PICTURE), first);

    // A click shows a second run from the same noise.
    tab.click("#compare");
    tab.wait("document.querySelector('[data-letter=B]')");
    settle(&mut tab, "B");
    let run_of = |letter: &str| format!("document.querySelector('#run-{letter}').value");
    assert_eq!((tab.value(&run_of("A")), tab.value(&run_of("B"))), (json!("tiny"), json!("step-000000015")));
    let seeds = "[...document.querySelectorAll('.grid')].map((image) => image.alt.match(/seed (\\d+)/)[1]).join()";
    assert_eq!(tab.value(seeds), "0,0");
    // The same checkpoint with the same settings draws the same picture.
    tab.value("(() => { const menu = document.querySelector('#checkpoint-A'); menu.value = 'step-000000015'; menu.dispatchEvent(new Event('change')); })()");
    settle(&mut tab, "A");
    assert_eq!(tab.value(PICTURE), tab.value("document.querySelector('[data-letter=B] .grid').src"));

    // A click on a class draws fewer rows, and an unlocked seed changes when the form is sent.
    tab.click("#chips label");
    settle(&mut tab, "A");
    assert_eq!(tab.value("document.querySelectorAll('[data-letter=A] .rows span').length"), 9);
    tab.click("#lock");
    tab.click("#draw");
    settle(&mut tab, "A");
    settle(&mut tab, "B");
    assert_eq!(
        tab.value("new Set([...document.querySelectorAll('.grid')].map((i) => i.alt.match(/seed (\\d+)/)[1])).size"),
        1
    );

    // Another rule brings its own settings.
    let menu = "document.querySelector('[data-letter=A] [data-id=guide] select')";
    tab.value(&format!("{menu}.value = 'cfg'; {menu}.dispatchEvent(new Event('change'))"));
    settle(&mut tab, "A");
    tab.wait("document.querySelector('[data-letter=A] figcaption').textContent.startsWith('8 network')");
    assert!(
        tab.value("[...document.querySelectorAll('[data-letter=A] label')].map((l) => l.textContent).join()")
            .as_str()
            .unwrap()
            .contains("Schedule")
    );

    // Downloads, the training, names for screen readers.
    assert!(tab.value("document.querySelector('[data-id=png]').href").as_str().unwrap().starts_with("data:image/png"));
    tab.wait("document.querySelectorAll('#training svg').length >= 3");
    let nameless = "[...document.querySelectorAll('input, select, button, textarea, a, img, progress')].filter((e) => \
        e.checkVisibility() && !e.labels?.length && !e.ariaLabel && !e.textContent.trim() && e.alt === undefined)\
        .map((e) => e.outerHTML)";
    assert_eq!(tab.value(nameless), json!([]));

    // A phone needs no sideways scrolling, and dark colours are dark.
    tab.phone(390, 844);
    tab.wait("document.documentElement.clientWidth <= 390");
    assert!(tab.value("document.documentElement.scrollWidth").as_u64().unwrap() <= 390);
    let back = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]";
    for (scheme, is_dark) in [("light", false), ("dark", true)] {
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        tab.call("Emulation.setEmulatedMedia", json!({ "features": [feature] }));
        assert_eq!(tab.value(back).as_u64().unwrap() < 128, is_dark, "{scheme}");
    }
    assert_eq!(tab.complaints, Vec::<String>::new());
}
