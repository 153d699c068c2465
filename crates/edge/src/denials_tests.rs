use super::*;
use crate::view::tests::{member, network_view};

fn outside() -> Outside {
    let mut view = network_view();
    view.members = (2..=200).map(|number| member(number, "web")).collect();
    Outside::build(&view)
}

fn refusal(last: u8, name: &str) -> Refusal {
    Refusal {
        source: IpAddr::from([10, 0, 1, last]),
        to: None,
        name: Some(name.to_owned()),
        port: Some(443),
        layer: Layer::Tls,
        rule: None,
        reason: "no rule allows it".to_owned(),
    }
}

fn total(taken: &TakenDenials) -> u64 {
    taken.totals.iter().map(|total| total.count).sum()
}

#[test]
fn refusals_alike_within_a_second_are_one_record() {
    let (denials, outside, start) = (Denials::new(), outside(), Instant::now());
    let first = denials.refuse(&outside, refusal(2, "a"), start);
    let same = denials.refuse(&outside, refusal(2, "a"), start + Duration::from_millis(999));
    assert_eq!((same.id, same.count), (first.id, 2));
    for (other, what) in [(refusal(3, "a"), "another machine"), (refusal(2, "b"), "another name")] {
        let denial = denials.refuse(&outside, other, start);
        assert_ne!(denial.id, first.id, "{what}");
        assert_eq!(denial.count, 1, "{what}");
    }
    let late = denials.refuse(&outside, refusal(2, "a"), start + ALIKE);
    assert_ne!(late.id, first.id);
    let taken = denials.take(0);
    assert_eq!(taken.denials.iter().map(|denial| denial.count).collect::<Vec<_>>(), [2, 1, 1, 1]);
    assert_eq!(total(&taken), 5);
    assert_eq!(taken.denials[0].member, Some(member(2, "web").id));
}

#[test]
fn what_was_taken_stays_until_it_is_acknowledged() {
    let (denials, outside, now) = (Denials::new(), outside(), Instant::now());
    denials.refuse(&outside, refusal(2, "a"), now);
    let taken = denials.take(0);
    assert_eq!(denials.take(0), taken, "the daemon died with it");
    denials.refuse(&outside, refusal(2, "b"), now);
    let rest = denials.take(taken.last);
    assert_eq!(rest.denials.len(), 1);
    let none = denials.take(rest.last);
    assert_eq!((none.denials.len(), none.last, none.more), (0, rest.last, false));
    assert_eq!(total(&none), 2);
}

#[test]
fn a_record_that_grows_after_it_was_taken_is_taken_again_with_its_id() {
    let (denials, outside, now) = (Denials::new(), outside(), Instant::now());
    let first = denials.refuse(&outside, refusal(2, "a"), now);
    let taken = denials.take(0);
    denials.refuse(&outside, refusal(2, "a"), now);
    // Whether or not what was taken has been acknowledged.
    for after in [0, taken.last] {
        let again = denials.take(after);
        assert_eq!(again.denials.iter().map(|d| (d.id, d.count)).collect::<Vec<_>>(), [(first.id, 2)]);
    }
}

#[test]
fn numbers_of_another_edge_acknowledge_nothing() {
    let (denials, outside) = (Denials::new(), outside());
    denials.refuse(&outside, refusal(2, "a"), Instant::now());
    assert_eq!(denials.take(u64::MAX).denials.len(), 1);
    assert_eq!(denials.take(u64::MAX).denials.len(), 1);
    let first = denials.take(0).last;
    assert!(Denials::new().take(0).last < first, "nothing was numbered");
    std::thread::sleep(Duration::from_millis(2));
    let next = Denials::new();
    next.refuse(&outside, refusal(2, "b"), Instant::now());
    assert_eq!(next.take(first).denials.len(), 1, "a later edge's numbers are higher");
}

#[test]
fn a_flood_of_one_machine_displaces_its_own_records_only_and_every_refusal_is_counted() {
    let (denials, outside, now) = (Denials::new(), outside(), Instant::now());
    denials.refuse(&outside, refusal(3, "quiet"), now);
    for index in 0..20_000 {
        denials.refuse(&outside, refusal(2, &format!("loud{index}")), now);
    }
    let taken = denials.take(0);
    assert_eq!(taken.denials.len(), 1 + MACHINE_RECORDS);
    assert_eq!(taken.denials[0].name.as_deref(), Some("quiet"));
    assert_eq!(taken.denials.last().unwrap().name.as_deref(), Some("loud19999"));
    assert_eq!(taken.totals.iter().map(|total| total.count).collect::<Vec<_>>(), [20_000, 1]);
}

#[test]
fn a_flood_of_everybody_is_bounded_and_comes_in_parts() {
    let (denials, outside, now) = (Denials::new(), outside(), Instant::now());
    for last in 2..=200 {
        for index in 0..100 {
            denials.refuse(&outside, refusal(last, &format!("n{index}")), now);
        }
    }
    let (mut seen, mut after) = (0, 0);
    loop {
        let taken = denials.take(after);
        seen += taken.denials.len();
        assert!(taken.denials.len() <= BATCH);
        assert_eq!(total(&taken), 199 * 100);
        if !taken.more {
            break;
        }
        after = taken.last;
    }
    assert_eq!(seen, RECORDS);
    assert!(denials.book().growing.len() <= RECORDS);
}

#[test]
fn totals_of_machines_that_are_gone_are_kept_under_nobody() {
    let (denials, outside, now) = (Denials::new(), outside(), Instant::now());
    denials.refuse(&outside, refusal(2, "a"), now);
    denials.refuse(&outside, refusal(3, "a"), now);
    denials.refuse(&outside, refusal(250, "a"), now);
    let stays = member(3, "web").id;
    denials.keep(outside.number, |machine| machine == stays);
    let totals = denials.take(0).totals;
    let by_machine: Vec<_> = totals.iter().map(|total| (total.member, total.count)).collect();
    assert_eq!(by_machine, [(None, 2), (Some(stays), 1)]);
}

#[test]
fn a_record_that_cannot_be_read_costs_only_itself() {
    let text = r#"{"last": 7, "more": false, "denials": [{"id": "dny_?"}], "totals": []}"#;
    let taken: TakenDenials = serde_json::from_str(text).unwrap();
    assert_eq!((taken.last, taken.denials.len()), (7, 0));
}

#[test]
fn what_a_machine_says_is_recorded_printable_and_bounded() {
    let (denials, outside, now) = (Denials::new(), outside(), Instant::now());
    let name = "a\x1b[2J\n\u{202e}\u{7f}\"\\\u{e9}";
    let denial = denials.refuse(&outside, refusal(2, name), now);
    assert_eq!(denial.name.as_deref(), Some("a\\u{1b}[2J\\n\\u{202e}\\u{7f}\"\\\u{e9}"));
    for long in ["a".repeat(256), "\0".repeat(60_000), "\u{e9}".repeat(128), "\u{1f980}".repeat(64)] {
        let denial = denials.refuse(&outside, Refusal { reason: long.repeat(4), ..refusal(3, &long) }, now);
        let name = denial.name.unwrap();
        assert!((NAME - 12..=NAME).contains(&name.len()) && name.ends_with('\u{2026}'), "{name}");
        assert!(denial.reason.len() <= REASON && !denial.reason.contains(char::is_control));
        assert_eq!(denial.suggested_rule, None);
    }
    let whole = "a".repeat(NAME);
    assert_eq!(denials.refuse(&outside, refusal(2, &whole), now).name, Some(whole));
}
