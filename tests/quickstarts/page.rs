//! A page: the blocks of it that are run, and what they have to say.

/// Stands for what differs from run to run.
const ANYTHING: &str = "…";

/// Whose shell runs a block, or what else is done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Host,
    Laptop,
    /// Needs a package registry, which the other places do not reach.
    Install,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    pub place: Place,
    pub commands: String,
    /// Line of the page, from 1.
    pub line: usize,
    /// What the page says that a terminal shows, if it says so.
    pub shown: Option<String>,
}

/// The fenced blocks of a page, in their order.
pub fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = page.lines().enumerate();
    // Whether a block's output may follow; one output belongs to one block.
    let mut may_show = false;
    while let Some((number, line)) = lines.next() {
        let Some(fence) = line.strip_prefix("```") else { continue };
        let content: String = lines
            .by_ref()
            .map(|(_, line)| line)
            .take_while(|line| *line != "```")
            .flat_map(|line| [line, "\n"])
            .collect();
        let place = match fence {
            "sh" | "sh host" => Place::Host,
            "sh laptop" => Place::Laptop,
            "sh install" => Place::Install,
            "text" => {
                let last = blocks.last_mut().filter(|_| may_show);
                let last = last.unwrap_or_else(|| panic!("line {}: the output of no command", number + 1));
                last.shown = Some(content);
                may_show = false;
                continue;
            }
            // The text of a file that the page speaks of.
            "ini" => continue,
            other => panic!("line {}: nobody knows what to do with {other:?}", number + 1),
        };
        blocks.push(Block { place, commands: content, line: number + 1, shown: None });
        may_show = place != Place::Install;
    }
    blocks
}

/// Whether a terminal shows what the page says: `…` stands for anything within a line, and a line of it alone for any
/// number of lines. Spaces at the ends of lines and empty lines at both ends make no difference.
pub fn matches(shown: &str, said: &str) -> bool {
    let [shown, said] = [shown, said].map(|text| {
        let lines = text.trim_matches('\n').lines().map(str::trim_end);
        lines.skip_while(|line| line.is_empty()).collect::<Vec<_>>()
    });
    lines_match(&shown, &said)
}

fn lines_match(shown: &[&str], said: &[&str]) -> bool {
    match shown.split_first() {
        None => said.iter().all(|line| line.is_empty()),
        Some((&ANYTHING, rest)) => (0..=said.len()).any(|skipped| lines_match(rest, &said[skipped..])),
        Some((line, rest)) => {
            said.split_first().is_some_and(|(first, said)| line_matches(line, first) && lines_match(rest, said))
        }
    }
}

fn line_matches(shown: &str, said: &str) -> bool {
    let Some((start, rest)) = shown.split_once(ANYTHING) else { return shown == said };
    let Some(mut said) = said.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split(ANYTHING).collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        let Some((_, after)) = said.split_once(part) else { return false };
        said = after;
    }
    said.ends_with(end)
}

#[test]
fn a_page_is_its_fenced_blocks() {
    let page =
        "# A page\n\n```sh\none\ntwo\n```\nSays:\n\n```text\n2\n```\n```ini\n[x]\n```\n```sh laptop\nthree\n```\n";
    let expected = [
        Block { place: Place::Host, commands: "one\ntwo\n".into(), line: 3, shown: Some("2\n".into()) },
        Block { place: Place::Laptop, commands: "three\n".into(), line: 15, shown: None },
    ];
    assert_eq!(blocks(page), expected);
    for wrong in ["```bash\nx\n```", "```text\nx\n```", "```sh\nx\n```\n```text\nx\n```\n```text\nx\n```"] {
        assert!(std::panic::catch_unwind(|| blocks(wrong)).is_err(), "{wrong}");
    }
}

#[test]
fn what_differs_is_passed_over_and_nothing_else() {
    for (shown, said) in [
        ("a\n", "a"),
        ("a\n", "\na  \n\n"),
        ("id …, until …\n", "id 7, until 9"),
        ("…b…d\n", "abcd"),
        ("a\n…\nz\n", "a\nz"),
        ("a\n…\nz\n", "a\nb\nc\nz"),
        ("…\nb …\n", "a\nb c"),
    ] {
        assert!(matches(shown, said), "{shown:?} {said:?}");
    }
    for (shown, said) in [
        ("a\n", ""),
        ("a\n", "a\nb"),
        ("a\n", "ab"),
        ("a …\n", "b a c"),
        ("a…b\n", "a\nb"),
        ("ab…bc\n", "abc"),
        ("a\n…\nz\n", "a\nb"),
    ] {
        assert!(!matches(shown, said), "{shown:?} {said:?}");
    }
}
