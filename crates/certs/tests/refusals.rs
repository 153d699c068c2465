//! What an authority can say that pebble never does.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::stub::{HERE, Stub, answer, problem, with};
use common::{Answers, name};
use jiff::{SignedDuration, Timestamp};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;
use warren_certs::acme::{Account, AcmeError, Outlook, Step};
use warren_certs::{Certificate, InvalidCertificate};

async fn account(stub: &Stub) -> Result<Account, AcmeError> {
    Account::create(&stub.directory(), None).await
}

async fn order_error(stub: &Stub) -> AcmeError {
    let answers = Answers::start().await;
    let error = account(stub).await.unwrap().issue(&[name("shop.example.com")], &answers).await.unwrap_err();
    assert_eq!(answers.all_withdrawn(), 0);
    error
}

/// A certificate that names its authority's key, as public ones do.
fn certificate() -> Certificate {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["shop.example.com".to_owned()]).unwrap();
    params.use_authority_key_identifier_extension = true;
    Certificate::from_pem(&params.signed_by(&key, &root).unwrap().pem(), &key.serialize_pem()).unwrap()
}

#[tokio::test]
async fn a_limit_says_when_it_ends_and_is_not_tried_against() {
    let stub = Stub::start(|_, path| {
        let limit = || with(problem(429, "rateLimited", "too many certificates"), "retry-after", "3600");
        (path == "/new-order").then(limit)
    })
    .await;
    let before = Timestamp::now();

    let error = order_error(&stub).await;

    assert_eq!(
        error.to_string(),
        "placing the order: the certificate authority refused: too many certificates (rateLimited)"
    );
    let Outlook::TryLater { not_before: Some(at) } = error.outlook() else { panic!("{error:?}") };
    let pause = at.duration_since(before);
    assert!((3600..3630).contains(&pause.as_secs()), "{pause}");
    assert_eq!(stub.count("POST /new-order"), 1);
}

#[tokio::test]
async fn an_outage_with_a_page_instead_of_a_problem_is_for_later_too() {
    let stub = Stub::start(|_, path| {
        (path == "/new-order").then(|| with(answer(503, "<html>maintenance</html>"), "retry-after", "60"))
    })
    .await;

    let error = order_error(&stub).await;

    assert!(matches!(error, AcmeError::Unexplained { step: Step::Order, status: 503, .. }), "{error:?}");
    assert!(matches!(error.outlook(), Outlook::TryLater { not_before: Some(_) }), "{error:?}");
}

#[tokio::test]
async fn a_name_that_the_authority_will_not_certify_is_never() {
    let stub = Stub::start(|_, path| {
        (path == "/new-order").then(|| problem(400, "rejectedIdentifier", "policy forbids issuing for this name"))
    })
    .await;

    let error = order_error(&stub).await;

    assert!(error.to_string().contains("policy forbids issuing for this name"), "{error}");
    assert_eq!(error.outlook(), Outlook::Never);
}

#[tokio::test]
async fn a_used_nonce_is_answered_with_a_fresh_one() {
    let failures = AtomicUsize::new(0);
    let stub = Stub::start(move |_, path| {
        let used = path == "/new-account" && failures.fetch_add(1, Ordering::Relaxed) < 2;
        used.then(|| problem(400, "badNonce", "used"))
    })
    .await;
    account(&stub).await.unwrap();
    assert_eq!(stub.count("POST /new-account"), 3);
}

#[tokio::test]
async fn what_is_no_directory_is_told() {
    let page = Stub::start(|_, path| (path == "/dir").then(|| answer(200, "<html>welcome</html>"))).await;
    let error = account(&page).await.unwrap_err();
    assert!(matches!(error, AcmeError::NotAcme { .. }), "{error:?}");

    let missing = Stub::start(|_, path| (path == "/dir").then(|| answer(404, ""))).await;
    let error = account(&missing).await.unwrap_err();
    assert!(matches!(error, AcmeError::Unexplained { status: 404, .. }), "{error:?}");
    assert_eq!(error.outlook(), Outlook::Never);

    let endless = Stub::start(|_, path| (path == "/dir").then(|| answer(200, " ".repeat(2 << 20)))).await;
    let error = account(&endless).await.unwrap_err();
    assert!(error.to_string().contains("more than 1048576 bytes"), "{error}");
}

#[tokio::test]
async fn a_token_that_is_no_token_is_not_published() {
    let stub = Stub::start(|_, path| match path {
        "/new-order" => {
            let order = json!({
                "status": "pending",
                "authorizations": [format!("{HERE}/authorization")],
                "finalize": format!("{HERE}/finalize"),
            });
            Some(with(answer(201, order.to_string()), "location", &format!("{HERE}/order")))
        }
        "/authorization" => {
            let challenge = json!({
                "type": "http-01", "url": format!("{HERE}/challenge"), "status": "pending",
                "token": "../../v1/machines",
            });
            let authorization = json!({
                "identifier": { "type": "dns", "value": "shop.example.com" },
                "status": "pending",
                "challenges": [challenge],
            });
            Some(answer(200, authorization.to_string()))
        }
        _ => None,
    })
    .await;

    let error = order_error(&stub).await;

    assert!(matches!(error, AcmeError::NotAcme { step: Step::Challenge, .. }), "{error:?}");
    assert_eq!(stub.count("POST /challenge"), 0);
}

#[tokio::test]
async fn an_authority_that_needs_hours_is_not_waited_for_and_says_when() {
    let stub = Stub::start(|_, path| {
        let order = |status: &str| {
            json!({
                "status": status, "authorizations": [], "finalize": format!("{HERE}/finalize"),
            })
            .to_string()
        };
        match path {
            "/new-order" => Some(with(answer(201, order("ready")), "location", &format!("{HERE}/order"))),
            "/finalize" => Some(answer(200, order("processing"))),
            "/order" => Some(with(answer(200, order("processing")), "retry-after", "7200")),
            _ => None,
        }
    })
    .await;
    let before = Timestamp::now();

    let error = order_error(&stub).await;

    assert!(matches!(error, AcmeError::Slow { step: Step::Download, .. }), "{error:?}");
    let Outlook::TryLater { not_before: Some(at) } = error.outlook() else { panic!("{error:?}") };
    assert!((7190..7230).contains(&at.duration_since(before).as_secs()), "{at}");
    assert_eq!(stub.count("POST /order"), 1);
}

#[tokio::test]
async fn a_certificate_for_another_key_is_not_taken() {
    let foreign = certificate().chain_pem().to_owned();
    let stub = Stub::start(move |_, path| {
        let order = |status: &str| {
            json!({
                "status": status, "authorizations": [], "finalize": format!("{HERE}/finalize"),
                "certificate": format!("{HERE}/certificate"),
            })
            .to_string()
        };
        match path {
            "/new-order" => Some(with(answer(201, order("ready")), "location", &format!("{HERE}/order"))),
            "/finalize" | "/order" => Some(answer(200, order("valid"))),
            "/certificate" => Some(answer(200, foreign.clone())),
            _ => None,
        }
    })
    .await;

    let error = order_error(&stub).await;

    assert!(matches!(error, AcmeError::Certificate(InvalidCertificate::Mismatch)), "{error:?}");
}

#[tokio::test]
async fn the_authoritys_window_for_renewal_is_read_and_bounded() {
    let stub = Stub::start(|method, path| {
        let info = json!({
            "suggestedWindow": { "start": "2031-01-02T04:00:00Z", "end": "2031-01-03T04:00:00Z" },
        });
        (method == "GET" && path.starts_with("/renewal-info/"))
            .then(|| with(answer(200, info.to_string()), "retry-after", "999999999"))
    })
    .await;

    let window = account(&stub).await.unwrap().renewal_window(&certificate()).await.unwrap().unwrap();

    assert_eq!(window.start, "2031-01-02T04:00:00Z".parse::<Timestamp>().unwrap());
    assert_eq!(window.end, "2031-01-03T04:00:00Z".parse::<Timestamp>().unwrap());
    assert_eq!(window.ask_again, SignedDuration::from_hours(24));
}

#[tokio::test]
async fn a_window_that_ends_before_it_starts_is_none() {
    let stub = Stub::start(|_, path| {
        let info = json!({ "suggestedWindow": { "start": "2031-01-03T04:00:00Z", "end": "2031-01-02T04:00:00Z" } });
        path.starts_with("/renewal-info/").then(|| with(answer(200, info.to_string()), "retry-after", "60"))
    })
    .await;
    assert_eq!(account(&stub).await.unwrap().renewal_window(&certificate()).await.unwrap(), None);
}

#[tokio::test]
async fn a_renewal_goes_on_where_the_authority_has_replaced_the_certificate_already() {
    let orders = AtomicUsize::new(0);
    let stub = Stub::start(move |_, path| {
        if path != "/new-order" {
            return None;
        }
        Some(match orders.fetch_add(1, Ordering::Relaxed) {
            0 => problem(409, "alreadyReplaced", "that certificate was replaced"),
            _ => problem(429, "rateLimited", "second order"),
        })
    })
    .await;
    let answers = Answers::start().await;
    let account = account(&stub).await.unwrap();
    let error = account.renew(&[name("shop.example.com")], &certificate(), &answers).await.unwrap_err();
    assert!(error.to_string().contains("second order"), "{error}");
    assert_eq!(stub.count("POST /new-order"), 2);
}
