//! The book's page of statements, which these tests write and compare.

use std::path::Path;
use std::sync::Mutex;

/// Two tests write one section each.
static WRITING: Mutex<()> = Mutex::new(());

/// Compares a section of the page with the lines of its table, or rewrites it if `UPDATE_BOOK` is set. A cell that
/// states a bound, such as `< 1e-12`, holds if the new bound is not above it: the last digits of an error differ between
/// processors.
pub fn section(heading: &str, table: &[String]) {
    let _writing = WRITING.lock().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src/statements.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let start = page.find(&format!("## {heading}\n")).unwrap_or_else(|| panic!("the page has no section {heading}"));
    let table_start = start + page[start..].find("\n| ").expect("the section has a table") + 1;
    let end = page[table_start..].find("\n\n").map_or(page.len() - 1, |end| table_start + end);
    if std::env::var_os("UPDATE_BOOK").is_some() {
        let page = format!("{}{}{}", &page[..table_start], table.join("\n"), &page[end..]);
        return std::fs::write(&path, page).unwrap();
    }
    let written: Vec<&str> = page[table_start..end].lines().collect();
    assert_eq!(written.len(), table.len(), "run the tests once with UPDATE_BOOK=1");
    for (written, now) in written.iter().zip(table) {
        let cells = |line: &str| line.split(" | ").map(str::to_string).collect::<Vec<_>>();
        let same = cells(written).iter().zip(cells(now)).all(|(written, now)| match (bound(written), bound(&now)) {
            (Some(written), Some(now)) => now <= written,
            _ => *written == now,
        });
        assert!(same, "run the tests once with UPDATE_BOOK=1\nwritten: {written}\nnow:     {now}");
    }
}

/// Returns the bound of a cell such as `< 1e-12`.
fn bound(cell: &str) -> Option<f64> {
    cell.trim_matches(['|', ' ']).strip_prefix("< ")?.parse().ok()
}

/// Writes a bound on an error that holds on other processors, too: the next power of ten above thirty times the error,
/// at least 1e-13.
pub fn below(error: f64) -> String {
    format!("< 1e{}", (30.0 * error).max(5e-14).log10().ceil())
}
