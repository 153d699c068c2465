//! Data to text for people. Pure, so that tests can hold every output.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use warren_model::record::Egress;
use warren_model::wire::{Counters, Port};

/// Columns under headings, set apart by two spaces. Those named in `right` hold numbers.
pub fn table(headings: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.iter().map(|heading| heading.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|text| printable(text)).collect::<Vec<_>>());
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    trimmed(&table.to_string())
}

/// Names and values below each other; what has no value is left out.
pub fn sheet(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let shown = rows.iter().filter(|(_, value)| !value.is_empty());
    trimmed(&shown.map(|(name, value)| format!("{name:width$}  {}\n", printable(value))).collect::<String>())
}

/// The first names of a list, and how many more there are.
pub fn first_of(names: &[String]) -> String {
    match names {
        [first, second, third, _, ..] => format!("{first}, {second}, {third} and {} more", names.len() - 3),
        few => few.join(", "),
    }
}

/// `web 8080/http`
pub fn port(port: &Port) -> String {
    format!("{} {}/{}", port.name, port.port, port.protocol.as_str())
}

pub fn ports(ports: &[Port]) -> String {
    ports.iter().map(port).collect::<Vec<_>>().join(", ")
}

pub fn egress(egress: Egress) -> &'static str {
    match egress {
        Egress::Deny => "deny",
        Egress::Open => "open",
    }
}

/// `1.5 MiB`
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = None;
    for next in UNITS {
        // What would be shown as 1024.0 belongs to the next unit.
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = Some(next);
    }
    match unit {
        None => format!("{count} B"),
        Some(unit) => format!("{value:.1} {unit}"),
    }
}

pub fn traffic_row(name: &str, counters: &Counters) -> Vec<String> {
    vec![
        name.to_owned(),
        bytes(counters.sent_bytes),
        counters.sent_packets.to_string(),
        bytes(counters.received_bytes),
        counters.received_packets.to_string(),
    ]
}

/// `2026-11-20 09:30:00Z`
pub fn time(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

pub fn maybe_time(at: Option<jiff::Timestamp>) -> String {
    at.map(time).unwrap_or_default()
}

/// What came over the network cannot steer a terminal: control characters are shown, not sent.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            // The controls of ISO 646 have pictures from U+2400 on.
            '\u{0}'..='\u{1f}' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'),
            c if c.is_control() => '\u{fffd}',
            // What turns the direction of writing (Unicode Standard Annex #9) makes a line look like another one.
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            c => c,
        })
        .collect()
}

fn trimmed(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_names_the_first_are_said_and_the_others_counted() {
        let names =
            |count: usize| ["a", "b", "c", "d", "e"][..count].iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            [1, 3, 4, 5].map(|count| first_of(&names(count))),
            ["a", "a, b, c", "a, b, c and 1 more", "a, b, c and 2 more"]
        );
    }

    #[test]
    fn what_steers_a_terminal_or_turns_a_line_is_shown_and_not_sent() {
        assert_eq!(printable("a\u{1b}[2J\u{202e}b\n\u{9b}c"), "a\u{241b}[2J\u{fffd}b\u{240a}\u{fffd}c");
    }

    #[test]
    fn columns_line_up_and_numbers_stand_right() {
        let rows = [vec!["a".to_owned(), "5".to_owned()], vec!["longer".to_owned(), "1000".to_owned()]];
        assert_eq!(table(&["name", "size"], &[1], rows), "NAME    SIZE\na          5\nlonger  1000\n");
    }

    #[test]
    fn a_sheet_leaves_out_what_is_not_there() {
        let rows = [("name", "a".to_owned()), ("failure", String::new()), ("state", "running".to_owned())];
        assert_eq!(sheet(&rows), "name     a\nstate    running\n");
    }

    #[test]
    fn sizes_are_short() {
        let shown = [0, 1023, 1024, 1536, 1 << 20, (1 << 20) - 1, 300 << 30].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 MiB", "300.0 GiB"]);
    }
}
