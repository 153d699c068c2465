use std::net::SocketAddr;
use std::path::Path;

use warren_certs::acme::Directory;

use super::acme::{Job, OrderError, Outcome, whole};
use super::*;
use crate::public::AcmeSettings;

const DAY: i64 = 24 * 3600;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(2_000_000_000 + second).unwrap()
}

fn settings(directory: &Path) -> PublicSettings {
    let any: SocketAddr = "0.0.0.0:1".parse().unwrap();
    let directory = directory.join("public");
    PublicSettings { https: Some(any), http: Some(any), directory, authority_name: "test".into(), ..Default::default() }
}

/// Names of one account, each below a registered domain of its own.
fn hosts<const N: usize>(names: [&str; N]) -> BTreeMap<HostName, Holder> {
    names.iter().map(|name| (host(name), holder(1))).collect()
}

fn holder(account: u64) -> Holder {
    Holder { account: AccountId::from_ulid(ulid::Ulid::from_parts(account, 1)), suffix: false }
}

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

/// Writes a certificate of somebody's for these names.
fn write_own(directory: &Path, names: &[&str]) -> OwnFiles {
    let authority = Authority::create("another", at(0)).unwrap();
    let files = OwnFiles { certificate: directory.join("chain.pem"), key: directory.join("key.pem") };
    let made = authority.issue(&host(names[0]), LEAF_LIFETIME, at(0)).unwrap();
    std::fs::write(&files.certificate, made.chain_pem()).unwrap();
    std::fs::write(&files.key, made.key_pem().expose()).unwrap();
    files
}

#[test]
fn each_name_has_a_certificate_that_another_daemon_finds_again_and_renews_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let both = hosts(["a.preview.example", "b.preview.example"]);
    let first = Certificates::new(&settings(directory.path()));
    assert_eq!(first.authority_pem(), None);
    let given = first.prepare(&both, at(0));
    assert_eq!((given.len(), given[0] == given[1]), (2, false));
    for name in both.keys() {
        let status = first.status(name, at(0));
        assert_eq!((status.state, status.detail), (CertificateState::Valid, None));
        assert_eq!(status.not_after, Some(at(90 * DAY)));
    }
    let second = Certificates::new(&settings(directory.path()));
    assert_eq!(second.prepare(&both, at(DAY)), given);
    assert_eq!(second.authority_pem(), first.authority_pem());
    assert_eq!(second.prepare(&both, at(50 * DAY)), given, "it is not due");
    let renewed = second.prepare(&both, at(61 * DAY));
    assert!(renewed.iter().all(|one| !given.contains(one)), "30 to 33 days are left");
    assert_eq!(second.prepare(&hosts([]), at(61 * DAY)), []);
    assert_eq!(second.status(&host("a.preview.example"), at(61 * DAY)).state, CertificateState::Pending);
}

#[test]
fn without_https_there_are_no_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(&PublicSettings { https: None, ..settings(directory.path()) });
    assert_eq!(certificates.prepare(&hosts(["a.preview.example"]), at(0)), []);
    assert_eq!(certificates.status(&host("a.preview.example"), at(0)).state, CertificateState::None);
    assert!(!directory.path().join("public").exists());
}

#[test]
fn an_authority_that_is_spoiled_is_told_and_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let one = hosts(["a.preview.example"]);
    Certificates::new(&settings(directory.path())).prepare(&hosts([]), at(0));
    let key = directory.path().join("public/authority.key");
    let kept = std::fs::read(&key).unwrap();
    std::fs::write(&key, "spoiled").unwrap();
    let certificates = Certificates::new(&settings(directory.path()));
    assert_eq!(certificates.prepare(&one, at(0)), []);
    let status = certificates.status(&host("a.preview.example"), at(0));
    assert_eq!(status.state, CertificateState::Failed);
    assert!(status.detail.unwrap().contains("authority.pem"));
    // Mended, it goes on by itself.
    std::fs::write(&key, kept).unwrap();
    assert_eq!(certificates.prepare(&one, at(1)).len(), 1);
    assert_eq!(certificates.status(&host("a.preview.example"), at(1)).state, CertificateState::Valid);
}

#[test]
fn the_operators_certificate_is_for_its_names_and_the_one_from_before_stays_while_it_is_spoiled() {
    let directory = tempfile::tempdir().unwrap();
    let own = write_own(directory.path(), &["a.preview.example"]);
    let certificates = Certificates::new(&PublicSettings { own: Some(own.clone()), ..settings(directory.path()) });
    let both = hosts(["a.preview.example", "b.preview.example"]);
    let given = certificates.prepare(&both, at(0));
    assert_eq!(given.len(), 2);
    assert_eq!(given[0].chain_pem, std::fs::read_to_string(&own.certificate).unwrap());
    assert!(certificates.authority_pem().is_some(), "the other name has it from there");

    std::fs::write(&own.certificate, "spoiled").unwrap();
    assert_eq!(certificates.prepare(&both, at(1)), given, "it is not read all the time");
    assert_eq!(certificates.prepare(&both, at(10)), given);
    let status = certificates.status(&host("a.preview.example"), at(10));
    assert_eq!(status.state, CertificateState::Valid);
    assert!(status.detail.unwrap().contains("chain.pem"));
    write_own(directory.path(), &["a.preview.example"]);
    let other = certificates.prepare(&both, at(20));
    assert_ne!(other[0], given[0]);
    assert_eq!((certificates.status(&host("a.preview.example"), at(20)).detail, &other[1]), (None, &given[1]));
}

#[test]
fn while_the_operators_certificate_was_never_read_no_name_has_another() {
    let directory = tempfile::tempdir().unwrap();
    let own = OwnFiles { certificate: directory.path().join("none.pem"), key: directory.path().join("none.key") };
    for others in [settings(directory.path()), with_acme(directory.path())] {
        let certificates = Certificates::new(&PublicSettings { own: Some(own.clone()), ..others });
        assert_eq!(certificates.prepare(&hosts(["a.preview.example"]), at(0)), []);
        assert_eq!(ordered(&certificates.jobs(at(0), 9)), [] as [&str; 0], "nobody knows which names lack one");
        let status = certificates.status(&host("a.preview.example"), at(0));
        assert_eq!(status.state, CertificateState::Failed);
        assert!(status.detail.unwrap().contains("none.pem"));
    }
}

fn with_acme(directory: &Path) -> PublicSettings {
    let acme = AcmeSettings {
        directory: Directory::new("https://ca.example/dir", None).unwrap(),
        email: None,
        limits: OrderLimits::default(),
    };
    PublicSettings { acme: Some(acme), ..settings(directory) }
}

fn ordered(jobs: &[Job]) -> Vec<&str> {
    let ordered = jobs.iter().map(|job| match job {
        Job::Order(host, _) => host.as_str(),
        Job::AskWhen(..) => "asks",
    });
    ordered.collect()
}

#[test]
fn names_are_ordered_once_some_at_a_time_and_again_after_a_pause() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(&with_acme(directory.path()));
    let all = hosts(["a.example", "b.example", "c.example"]);
    assert_eq!(certificates.prepare(&all, at(0)), []);
    assert_eq!(certificates.status(&host("a.example"), at(0)).state, CertificateState::Pending);
    assert_eq!(ordered(&certificates.jobs(at(0), 2)), ["a.example", "b.example"]);
    assert_eq!(ordered(&certificates.jobs(at(0), 2)), ["c.example"], "the others are under way");

    let authority = Authority::create("test", at(0)).unwrap();
    let issued = authority.issue(&host("a.example"), LEAF_LIFETIME, at(0)).unwrap();
    certificates.settle(Outcome::Ordered(host("a.example"), Ok(issued)), at(0));
    let failed = || Err(OrderError::Kept("no answer".to_owned()));
    certificates.settle(Outcome::Ordered(host("b.example"), failed()), at(0));
    assert_eq!(certificates.status(&host("a.example"), at(0)).state, CertificateState::Valid);
    let status = certificates.status(&host("b.example"), at(0));
    assert_eq!((status.state, status.detail.as_deref()), (CertificateState::Failed, Some("no answer")));
    assert_eq!(certificates.prepare(&all, at(0)).len(), 1);
    assert_eq!(certificates.authority_pem(), None);

    // Who has one asks when it should be renewed.
    assert_eq!(ordered(&certificates.jobs(at(1), 9)), ["asks"]);
    certificates.settle(Outcome::Asked(host("a.example"), None), at(1));
    assert_eq!(ordered(&certificates.jobs(at(200), 9)), [] as [&str; 0]);
    assert_eq!(ordered(&certificates.jobs(at(400), 9)), ["b.example"], "5 minutes and a bit after the failure");
    certificates.settle(Outcome::Asked(host("a.example"), None), at(62 * DAY));
    assert_eq!(ordered(&certificates.jobs(at(62 * DAY), 9)), ["a.example"], "it is due");
    // One whose name was taken back meanwhile is of no interest.
    assert_eq!(certificates.prepare(&hosts(["c.example"]), at(62 * DAY)), []);
    certificates.settle(Outcome::Ordered(host("a.example"), failed()), at(62 * DAY));
}

fn fails(certificates: &Certificates, name: &str, now: Timestamp) {
    let failed = Err(OrderError::Kept("no answer".to_owned()));
    certificates.settle(Outcome::Ordered(host(name), failed), now);
}

fn succeeds(certificates: &Certificates, name: &str, now: Timestamp) {
    let issued = Authority::create("test", now).unwrap().issue(&host(name), LEAF_LIFETIME, now).unwrap();
    let folder = certificates.acme.as_ref().unwrap();
    folder.keep(&host(name), &issued).unwrap();
    // Files have the time of the tests.
    folder.clean(&[host(name)].into(), now);
    certificates.settle(Outcome::Ordered(host(name), Ok(issued)), now);
}

#[test]
fn failures_of_a_name_are_remembered_when_it_is_unmapped_and_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut certificates = Certificates::new(&with_acme(directory.path()));
    let (one, none) = (hosts(["a.example"]), hosts([]));
    let mut attempts = Vec::new();
    for second in (0..3600).step_by(10) {
        certificates.prepare(&one, at(second));
        let jobs = certificates.jobs(at(second), 9);
        certificates.prepare(&none, at(second));
        if !jobs.is_empty() {
            attempts.push(second);
            // The name is public no more when the answer comes.
            fails(&certificates, "a.example", at(second));
            certificates.keep_memory().unwrap();
        }
        if second % 500 == 0 {
            certificates = Certificates::new(&with_acme(directory.path()));
        }
    }
    assert_eq!(attempts.len(), 4, "{attempts:?}");
    certificates.prepare(&one, at(3600));
    let status = certificates.status(&host("a.example"), at(3600));
    assert_eq!((status.state, status.detail.as_deref()), (CertificateState::Failed, Some("no answer")));
}

#[test]
fn a_name_is_not_ordered_twice_when_it_is_mapped_again_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(&with_acme(directory.path()));
    let (one, none) = (hosts(["a.example"]), hosts([]));
    certificates.prepare(&one, at(0));
    assert_eq!(ordered(&certificates.jobs(at(0), 9)), ["a.example"]);
    certificates.prepare(&none, at(1));
    certificates.prepare(&one, at(2));
    assert_eq!(ordered(&certificates.jobs(at(2), 9)), [] as [&str; 0]);
    succeeds(&certificates, "a.example", at(3));
    assert_eq!(certificates.status(&host("a.example"), at(3)).state, CertificateState::Valid);
}

#[test]
fn a_name_that_is_mapped_again_has_its_certificate_from_disk_and_orders_none() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(&with_acme(directory.path()));
    let (one, none) = (hosts(["a.example"]), hosts([]));
    certificates.prepare(&one, at(0));
    assert_eq!(ordered(&certificates.jobs(at(0), 9)), ["a.example"]);
    succeeds(&certificates, "a.example", at(0));
    for minute in 1..100 {
        certificates.prepare(&none, at(60 * minute));
        assert_eq!(certificates.prepare(&one, at(60 * minute)).len(), 1);
        let jobs = certificates.jobs(at(60 * minute), 9);
        assert!(jobs.iter().all(|job| matches!(job, Job::AskWhen(..))), "{:?}", ordered(&jobs));
        certificates.settle(Outcome::Asked(host("a.example"), None), at(60 * minute));
    }
}

#[test]
fn an_account_that_maps_ever_new_names_is_bounded_and_another_still_has_its_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(&with_acme(directory.path()));
    let suffix = |account| Holder { suffix: true, ..holder(account) };
    let mut count = 0;
    for n in 0..300 {
        let name = host(&format!("n{n}.preview.example.com"));
        certificates.prepare(&BTreeMap::from([(name.clone(), suffix(1))]), at(n));
        if !certificates.jobs(at(n), 9).is_empty() {
            count += 1;
            certificates.prepare(&hosts([]), at(n));
            succeeds(&certificates, name.as_str(), at(n));
        } else {
            let status = certificates.status(&name, at(n));
            assert_eq!(status.state, CertificateState::Pending);
            assert!(status.detail.unwrap().contains("at most 45 certificates for names below example.com"));
        }
    }
    assert_eq!(count, 23);
    let other = BTreeMap::from([(host("other.preview.example.com"), suffix(2))]);
    certificates.prepare(&other, at(400));
    assert_eq!(ordered(&certificates.jobs(at(400), 9)), ["other.preview.example.com"]);
    // A restart does not forget what was ordered.
    certificates.keep_memory().unwrap();
    let again = Certificates::new(&with_acme(directory.path()));
    let late = BTreeMap::from([(host("late.preview.example.com"), suffix(1))]);
    again.prepare(&late, at(500));
    assert_eq!(ordered(&again.jobs(at(500), 9)), [] as [&str; 0]);
    again.prepare(&late, at(7 * DAY + 60));
    assert_eq!(ordered(&again.jobs(at(7 * DAY + 60), 9)), ["late.preview.example.com"]);
}

#[test]
fn accounts_take_turns_and_none_has_all_places() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(&with_acme(directory.path()));
    let mut all: BTreeMap<HostName, Holder> =
        (0..100).map(|n| (host(&format!("a{n:02}.example")), holder(1))).collect();
    certificates.prepare(&all, at(0));
    assert_eq!(ordered(&certificates.jobs(at(0), 8)), ["a00.example", "a01.example", "a02.example", "a03.example"]);
    all.extend([(host("z0.example"), holder(2)), (host("z1.example"), holder(2)), (host("z2.example"), holder(3))]);
    certificates.prepare(&all, at(1));
    assert_eq!(ordered(&certificates.jobs(at(1), 3)), ["z0.example", "z2.example", "z1.example"]);
    for name in ["a00.example", "a01.example", "z0.example", "z1.example", "z2.example"] {
        fails(&certificates, name, at(2));
    }
    all.insert(host("z3.example"), holder(2));
    certificates.prepare(&all, at(2));
    assert_eq!(ordered(&certificates.jobs(at(2), 2)), ["z3.example", "a04.example"]);
}

#[test]
fn the_key_of_a_name_that_is_public_no_more_goes_after_a_week_whatever_the_source_was() {
    let directory = tempfile::tempdir().unwrap();
    let now = Timestamp::now();
    let after = |hours| now + SignedDuration::from_hours(hours);
    let (one, none) = (hosts(["a.example"]), hosts([]));
    let certificates = Certificates::new(&settings(directory.path()));
    certificates.prepare(&one, now);
    let file = directory.path().join("public/internal/a.example");
    certificates.prepare(&one, after(100));
    certificates.prepare(&none, after(101));
    certificates.prepare(&none, after(100 + 7 * 24 - 1));
    assert!(file.exists(), "it may be mapped again");
    certificates.prepare(&none, after(100 + 7 * 24 + 1));
    assert!(!file.exists());
    // From now on certificates come from elsewhere.
    certificates.prepare(&one, after(298));
    certificates.prepare(&one, after(300));
    let later = Certificates::new(&with_acme(directory.path()));
    later.prepare(&one, after(301));
    assert!(file.exists());
    later.prepare(&one, after(300 + 8 * 24));
    assert!(!file.exists());
}

#[tokio::test]
async fn an_order_that_panics_costs_the_name_a_pause_and_nobody_a_place() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(&with_acme(directory.path()));
    let one = hosts(["a.example"]);
    certificates.prepare(&one, at(0));
    // As often as would take all places.
    for (turn, second) in (0..20).map(|turn| (turn, turn * 7 * DAY)) {
        certificates.prepare(&one, at(second));
        let jobs = certificates.jobs(at(second), 9);
        assert_eq!(ordered(&jobs), ["a.example"], "{turn}");
        let outcome = whole(jobs[0].broken(), async { panic!("on purpose") }).await;
        certificates.settle(outcome, at(second));
        let status = certificates.status(&host("a.example"), at(second));
        assert_eq!(status.state, CertificateState::Failed);
        assert!(status.detail.unwrap().contains("on the host"));
        assert_eq!(ordered(&certificates.jobs(at(second), 9)), [] as [&str; 0], "not at once");
    }
    succeeds(&certificates, "a.example", at(141 * DAY));
    let asks = certificates.jobs(at(141 * DAY), 9);
    assert_eq!(ordered(&asks), ["asks"]);
    certificates.settle(whole(asks[0].broken(), async { panic!("on purpose") }).await, at(141 * DAY));
    assert_eq!(certificates.status(&host("a.example"), at(141 * DAY)).state, CertificateState::Valid);
    assert_eq!(ordered(&certificates.jobs(at(143 * DAY), 9)), ["asks"], "again, later");
}

#[test]
fn without_plain_http_no_name_is_ordered_and_it_is_told_why() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(&PublicSettings { http: None, ..with_acme(directory.path()) });
    certificates.prepare(&hosts(["a.example"]), at(0));
    assert_eq!(ordered(&certificates.jobs(at(0), 9)), [] as [&str; 0]);
    let status = certificates.status(&host("a.example"), at(0));
    assert!(status.state == CertificateState::Failed && status.detail.unwrap().contains("--http-listen"));
}
