//! Orders at a real ACME server: pebble fetches the challenges from a web server of the test, by names that a name
//! server of the test answers for.

mod common;

use std::sync::Arc;

use common::{Answers, name};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use warren_certs::Certificate;
use warren_certs::acme::{Account, AcmeError, Credentials, Directory, Outlook, Step};
use warren_lab::pebble::{NOBODY, Pebble, ServerTls};

/// Panics unless a client that trusts `root` accepts the certificate for the name.
fn accepted(certificate: &Certificate, root: &str, host: &str) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(certificate.chain_pem().as_bytes()).collect::<Result<_, _>>().unwrap();
    let server = ServerName::try_from(host.to_owned()).unwrap();
    verifier.verify_server_cert(&chain[0], &chain[1..], &server, &[], UnixTime::now()).unwrap();
}

fn directory(pebble: &Pebble) -> Directory {
    Directory::new(&pebble.directory(), Some(&pebble.ca_file())).unwrap()
}

async fn account(pebble: &Pebble) -> Account {
    Account::create(&directory(pebble), Some(&"ops@example.com".parse().unwrap())).await.unwrap()
}

#[tokio::test]
async fn a_certificate_is_issued_by_answering_the_challenges_of_every_name() {
    let answers = Answers::start().await;
    let pebble = Pebble::on_loopback(answers.port);
    let account = account(&pebble).await;
    let names = [name("shop.example.com"), name("a.preview.example.com"), name("shop.example.com")];

    let certificate = account.issue(&names, &answers).await.unwrap();

    let root = pebble.root(None);
    for name in &names {
        assert!(certificate.covers(name));
        accepted(&certificate, &root, name.as_str());
    }
    assert_eq!(certificate.names().len(), 2);
    assert_eq!(answers.all_withdrawn(), 2);
    let hosts: Vec<_> = answers.hosts().into_iter().collect();
    assert_eq!(hosts, ["a.preview.example.com", "shop.example.com"]);
    let now = jiff::Timestamp::now();
    let due = warren_certs::renewal::due(certificate.validity(), None, &names[0]);
    assert!(now < due && due < certificate.validity().not_after, "{due}");
}

#[tokio::test]
async fn a_stored_account_is_used_again_and_renews() {
    let answers = Answers::start().await;
    let pebble = Pebble::on_loopback(answers.port);
    let first = account(&pebble).await;
    let names = [name("shop.example.com")];
    let before = first.issue(&names, &answers).await.unwrap();
    let stored = serde_json::to_string(first.credentials()).unwrap();
    drop(first);

    let credentials: Credentials = serde_json::from_str(&stored).unwrap();
    let again = Account::open(&directory(&pebble), &credentials).await.unwrap();
    assert_eq!(again.credentials(), &credentials);
    // This server says nothing about renewal, and the order goes through all the same.
    assert_eq!(again.renewal_window(&before).await.unwrap(), None);
    let after = again.renew(&names, &before, &answers).await.unwrap();

    assert_ne!(after.chain_pem(), before.chain_pem());
    assert_ne!(after.key_pem(), before.key_pem());
    accepted(&after, &pebble.root(None), "shop.example.com");
    assert_eq!(answers.all_withdrawn(), 2);
}

#[tokio::test]
async fn a_wrong_answer_to_the_challenge_is_told_in_the_authoritys_words() {
    let answers = Answers::start().await;
    let pebble = Pebble::on_loopback(answers.port);
    let account = account(&pebble).await;
    answers.lie("nonsense");

    let error = account.issue(&[name("shop.example.com")], &answers).await.unwrap_err();

    let AcmeError::NotVerified { name: refused, problem } = &error else { panic!("{error:?}") };
    assert_eq!(refused, "shop.example.com");
    assert_eq!(problem.kind, "unauthorized");
    assert!(problem.detail.contains("nonsense"), "{problem}");
    assert_eq!(error.outlook(), Outlook::TryLater { not_before: None });
    assert_eq!(answers.all_withdrawn(), 1);
}

#[tokio::test]
async fn of_two_names_the_one_that_does_not_resolve_is_told() {
    let answers = Answers::start().await;
    let pebble = Pebble::on_loopback(answers.port);
    let account = account(&pebble).await;

    let error = account.issue(&[name("shop.example.com"), name(NOBODY)], &answers).await.unwrap_err();

    let AcmeError::NotVerified { name: refused, problem } = &error else { panic!("{error:?}") };
    assert_eq!(refused, NOBODY);
    assert!(problem.detail.contains(NOBODY), "{problem}");
    assert_eq!(error.outlook(), Outlook::TryLater { not_before: None });
    assert_eq!(answers.all_withdrawn(), 2);
}

#[tokio::test]
async fn a_challenge_that_cannot_be_published_ends_the_order() {
    let answers = Answers::start().await;
    let pebble = Pebble::on_loopback(answers.port);
    let account = account(&pebble).await;
    answers.refuse_to_publish();

    let error = account.issue(&[name("shop.example.com")], &answers).await.unwrap_err();

    assert!(matches!(&error, AcmeError::Publish { name, .. } if name == "shop.example.com"), "{error:?}");
    assert_eq!(error.to_string(), "the challenge for shop.example.com could not be published: the edge is away");
    assert_eq!(answers.hosts().len(), 0);
    assert_eq!(answers.all_withdrawn(), 1);
}

#[tokio::test]
async fn an_account_that_the_authority_has_forgotten_has_to_be_made_anew() {
    let answers = Answers::start().await;
    let first = Pebble::on_loopback(answers.port);
    let stored = account(&first).await.credentials().clone();
    drop(first);
    let second = Pebble::on_loopback(answers.port);
    let directory = directory(&second);
    let elsewhere = Account::open(&directory, &stored).await.unwrap_err();
    assert!(matches!(elsewhere, AcmeError::OtherDirectory { .. }), "{elsewhere:?}");
    assert_eq!(elsewhere.outlook(), Outlook::NewAccount);

    let made = account(&second).await;
    let account_url = format!("{}0", made.credentials().account);
    let forgotten = Credentials { account: account_url, ..made.credentials().clone() };
    let opened = Account::open(&directory, &forgotten).await.unwrap();
    let error = opened.issue(&[name("shop.example.com")], &answers).await.unwrap_err();
    assert_eq!(error.outlook(), Outlook::NewAccount, "{error:?}");
}

#[tokio::test]
async fn a_directory_that_is_down_is_for_later() {
    let answers = Answers::start().await;
    let pebble = Pebble::on_loopback(answers.port);
    let (directory, account) = (directory(&pebble), account(&pebble).await);
    drop(pebble);

    let later = Outlook::TryLater { not_before: None };
    let create = Account::create(&directory, None).await.unwrap_err();
    assert!(matches!(create, AcmeError::Unreachable { step: Step::Account, .. }), "{create:?}");
    assert!(create.to_string().contains("refused"), "{create}");
    assert_eq!(create.outlook(), later);
    let open = Account::open(&directory, account.credentials()).await.unwrap_err();
    assert!(matches!(open, AcmeError::Unreachable { step: Step::Directory, .. }), "{open:?}");
    let issue = account.issue(&[name("shop.example.com")], &answers).await.unwrap_err();
    assert!(matches!(issue, AcmeError::Unreachable { step: Step::Order, .. }), "{issue:?}");
    assert_eq!(answers.all_withdrawn(), 0);
}

#[tokio::test]
async fn a_private_authority_is_only_trusted_with_its_ca_file() {
    let answers = Answers::start().await;
    let pebble = Pebble::on_loopback(answers.port);
    let other = ServerTls::new([127, 0, 0, 1].into());
    let stranger = Directory::new(&pebble.directory(), Some(&other.ca_file())).unwrap();

    let error = Account::create(&stranger, None).await.unwrap_err();

    assert!(matches!(error, AcmeError::Untrusted { .. }), "{error:?}");
    assert!(error.to_string().contains("CA file"), "{error}");
}

#[tokio::test]
async fn an_order_without_names_is_refused_before_it_is_placed() {
    let answers = Answers::start().await;
    let pebble = Pebble::on_loopback(answers.port);
    let error = account(&pebble).await.issue(&[], &answers).await.unwrap_err();
    assert!(matches!(error, AcmeError::NoNames));
    assert_eq!(error.outlook(), Outlook::Never);
}
