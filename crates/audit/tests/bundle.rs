//! A report that is written into a directory, and what is found of it when somebody changes something.

mod sample;

use std::fs;
use std::path::Path;

use sample::{cell, machine, named, report};
use warren_audit::bundle::{self, Chain, PAGE, REPORT, SIGNATURE, VerifyError, seal, verify};
use warren_audit::report::*;
use warren_audit::sign::{SigningKey, sha256};
use warren_audit::standards;
use warren_model::audit::{SignedReport, Verdict};

fn link(signed: &SignedReport) -> Option<Link> {
    Some(Link { number: signed.number, sha256: sha256(signed.report.as_bytes()) })
}

fn written(directory: &Path, key: &SigningKey, count: u64) -> Vec<SignedReport> {
    let mut all: Vec<SignedReport> = Vec::new();
    for number in 1..=count {
        let previous = all.last().and_then(link);
        let signed = seal(report(number, previous, vec![cell(Verdict::Pass)]), key).unwrap();
        bundle::write(directory, &signed).unwrap();
        all.push(signed);
    }
    all
}

#[test]
fn a_report_as_it_was_written_is_genuine_and_its_chain_is_followed() {
    let (key, directory) = (SigningKey::generate().unwrap().0, tempfile::tempdir().unwrap());
    written(directory.path(), &key, 3);
    let verified = verify(directory.path(), &key.public()).unwrap();
    assert_eq!(verified.report.number, 3);
    assert_eq!(verified.report.result, Verdict::Pass);
    assert_eq!(verified.chain, Chain::Whole { reports: 3 });
    fs::remove_dir_all(directory.path().join("earlier/00000001")).unwrap();
    let verified = verify(directory.path(), &key.public()).unwrap();
    assert!(matches!(verified.chain, Chain::UpTo { reports: 2, missing: Link { number: 1, .. } }));
}

#[test]
fn a_write_that_is_cut_short_anywhere_leaves_the_chain_and_is_begun_anew() {
    let key = SigningKey::generate().unwrap().0;
    // What cannot be put in its place: first what is kept of the old report, then the new one.
    for blocked in ["earlier/00000002/.report.json.new", ".report.html.new", ".report.sig.new", ".report.json.new"] {
        let directory = tempfile::tempdir().unwrap();
        let all = written(directory.path(), &key, 2);
        let obstacle = directory.path().join(blocked);
        fs::create_dir_all(&obstacle).unwrap();
        let third = seal(report(3, link(&all[1]), vec![cell(Verdict::Pass)]), &key).unwrap();
        bundle::write(directory.path(), &third).unwrap_err();
        let newest = bundle::newest(directory.path()).unwrap().unwrap();
        assert_eq!(fs::read_to_string(newest).unwrap(), all[1].report, "{blocked}");
        fs::remove_dir(&obstacle).unwrap();
        bundle::write(directory.path(), &third).unwrap();
        assert_eq!(verify(directory.path(), &key.public()).unwrap().chain, Chain::Whole { reports: 3 }, "{blocked}");
    }
}

#[test]
fn without_a_report_in_its_place_the_newest_is_the_highest_earlier_one() {
    let (key, directory) = (SigningKey::generate().unwrap().0, tempfile::tempdir().unwrap());
    assert_eq!(bundle::newest(directory.path()).unwrap(), None);
    let all = written(directory.path(), &key, 3);
    fs::remove_file(directory.path().join(REPORT)).unwrap();
    fs::create_dir(directory.path().join("earlier/00000009")).unwrap();
    let newest = bundle::newest(directory.path()).unwrap().unwrap();
    assert_eq!(fs::read_to_string(newest).unwrap(), all[1].report);
}

#[test]
fn whatever_is_changed_is_found() {
    let key = SigningKey::generate().unwrap().0;
    for file in [REPORT, SIGNATURE, PAGE, "earlier/00000001/report.json", "earlier/00000001/report.html"] {
        let directory = tempfile::tempdir().unwrap();
        written(directory.path(), &key, 2);
        let path = directory.path().join(file);
        let good = fs::read(&path).unwrap();
        for at in [0, good.len() / 2, good.len() - 2] {
            let mut bent = good.clone();
            bent[at] ^= 1;
            fs::write(&path, &bent).unwrap();
            assert!(verify(directory.path(), &key.public()).is_err(), "{file} at {at}");
        }
        fs::write(&path, &good[..good.len() - 1]).unwrap();
        let shortened = verify(directory.path(), &key.public());
        // The end of the signature's line carries nothing.
        assert!(shortened.is_err() || file == SIGNATURE, "{file} shortened");
        fs::remove_file(&path).unwrap();
        if file != "earlier/00000001/report.json" {
            assert!(verify(directory.path(), &key.public()).is_err(), "{file} removed");
        }
    }
}

#[test]
fn another_key_another_page_and_another_predecessor_are_found() {
    let (key, other) = (SigningKey::generate().unwrap().0, SigningKey::generate().unwrap().0);
    let directory = tempfile::tempdir().unwrap();
    let all = written(directory.path(), &key, 2);
    assert!(matches!(verify(directory.path(), &other.public()), Err(VerifyError::OtherKey { .. })));

    let stranger = seal(report(1, None, vec![cell(Verdict::Pass), cell(Verdict::Pass)]), &key).unwrap();
    fs::write(directory.path().join(PAGE), &stranger.page).unwrap();
    assert!(matches!(verify(directory.path(), &key.public()), Err(VerifyError::OtherPage { .. })));
    fs::write(directory.path().join(PAGE), &all[1].page).unwrap();

    // A genuine report under the number of another one.
    let kept = directory.path().join("earlier/00000001");
    for (name, content) in [(REPORT, &stranger.report), (SIGNATURE, &stranger.signature), (PAGE, &stranger.page)] {
        fs::write(kept.join(name), content).unwrap();
    }
    assert!(matches!(verify(directory.path(), &key.public()), Err(VerifyError::BrokenChain { number: 2, .. })));
}

#[test]
fn a_signed_report_that_calls_itself_better_than_its_findings_is_refused() {
    let (key, directory) = (SigningKey::generate().unwrap().0, tempfile::tempdir().unwrap());
    let mut dishonest = report(1, None, vec![cell(Verdict::Inconclusive)]);
    assert_eq!(dishonest.result, Verdict::Inconclusive);
    dishonest.result = Verdict::Pass;
    bundle::write(directory.path(), &seal(dishonest, &key).unwrap()).unwrap();
    assert!(matches!(verify(directory.path(), &key.public()), Err(VerifyError::WrongResult { .. })));
}

#[test]
fn only_a_report_without_any_doubt_is_a_pass() {
    let verdict = |cells: &[Cell], machines: Vec<MachineItem>, live: &[LiveRules], log: Option<&LogHead>| {
        result(cells, &Inventory { machines, ..Inventory::default() }, live, log).0
    };
    let live = |reconciled| [LiveRules { network: named("n"), reconciled, detail: "d".to_owned() }];
    let log = |intact| LogHead { number: 1, sha256: String::new(), intact };
    let unprobed = || vec![machine("b", Probed::No { why: "it is stopped".to_owned() })];
    assert_eq!(
        verdict(&[cell(Verdict::Pass)], vec![machine("a", Probed::Yes)], &live(true), Some(&log(true))),
        Verdict::Pass
    );
    assert_eq!(verdict(&[], vec![], &[], None), Verdict::Inconclusive);
    assert_eq!(verdict(&[cell(Verdict::Pass), cell(Verdict::Inconclusive)], vec![], &[], None), Verdict::Inconclusive);
    assert_eq!(verdict(&[cell(Verdict::Pass)], unprobed(), &[], None), Verdict::Inconclusive);
    assert_eq!(verdict(&[cell(Verdict::Fail), cell(Verdict::Inconclusive)], unprobed(), &[], None), Verdict::Fail);
    assert_eq!(verdict(&[cell(Verdict::Pass)], vec![], &live(false), None), Verdict::Fail);
    assert_eq!(verdict(&[cell(Verdict::Pass)], vec![], &[], Some(&log(false))), Verdict::Fail);
    let gap = Inventory { gaps: vec!["x".to_owned()], ..Inventory::default() };
    assert_eq!(result(&[cell(Verdict::Pass)], &gap, &[], None).0, Verdict::Inconclusive);
}

#[test]
fn the_page_takes_nothing_for_markup_and_nothing_from_elsewhere() {
    let key = SigningKey::generate().unwrap().0;
    let page = seal(report(1, None, vec![cell(Verdict::Fail)]), &key).unwrap().page;
    assert!(!page.contains("<script") && !page.contains("<b onload"), "{page}");
    assert!(page.contains("&lt;b onload=&quot;x&quot;&gt;"));
    assert!(page.contains("default-src &#39;none&#39;") || page.contains("default-src 'none'"));
    for foreign in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    assert!(page.contains(&key.public().id()));
}

#[test]
fn the_standards_speak_of_parts_that_a_report_has() {
    let json = serde_json::to_value(report(1, None, vec![])).unwrap();
    for standard in standards::table() {
        for part in &standard.evidence {
            let pointer = format!("/{}", part.replace('.', "/"));
            assert!(json.pointer(&pointer).is_some(), "{}: {part}", standard.id);
        }
    }
}
