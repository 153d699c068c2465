//! One order, from the names to the certificate (RFC 8555 §7.4).

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeType, Identifier, NewOrder, Order, OrderStatus,
    RetryPolicy,
};
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use tokio::time::Instant;
use warren_model::policy::HostName;
use zeroize::Zeroize;

use super::{AcmeError, Challenges, Problem, Step};
use crate::renewal::Window;
use crate::{Certificate, KeyPem};

/// How an order's state is asked for while the authority works. A `Retry-After` goes before these pauses.
const POLL: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(1.5).timeout(Duration::from_secs(120));

/// For a whole order, with everything that the caller does for its challenges.
const ORDER_TIMEOUT: Duration = Duration::from_secs(300);

pub(super) async fn issue(
    account: &Account,
    names: &[HostName],
    previous: Option<&Certificate>,
    challenges: &dyn Challenges,
) -> Result<Certificate, AcmeError> {
    let mut names: Vec<&HostName> = names.iter().collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Err(AcmeError::NoNames);
    }
    let deadline = Instant::now() + ORDER_TIMEOUT;
    let mut order = until(deadline, Step::Order, place(account, &names, previous)).await?;
    let mut published = Vec::new();
    let verified = until(deadline, Step::Challenge, verify(&mut order, challenges, &mut published)).await;
    for token in &published {
        challenges.withdraw(token).await;
    }
    verified?;
    until(deadline, Step::Download, fetch(&mut order, &names)).await
}

pub(super) async fn renewal_window(account: &Account, certificate: &Certificate) -> Result<Option<Window>, AcmeError> {
    let Ok(id) = CertificateIdentifier::try_from(certificate.leaf_der()) else { return Ok(None) };
    let (info, pause) = match account.renewal_info(&id).await {
        Ok(answer) => answer,
        Err(instant_acme::Error::Unsupported(_)) => return Ok(None),
        Err(error) => return Err(AcmeError::at(Step::RenewalInfo)(error)),
    };
    let at = |time: time::OffsetDateTime| Timestamp::from_second(time.unix_timestamp()).ok();
    let window = info.suggested_window;
    // RFC 9773 §4.2: a window that ends before it starts counts as none.
    let Some((start, end)) = at(window.start).zip(at(window.end)).filter(|(start, end)| start < end) else {
        return Ok(None);
    };
    let pause = SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX);
    Ok(Some(Window { start, end, ask_again: Window::pause(pause) }))
}

async fn until<T>(
    deadline: Instant,
    step: Step,
    work: impl Future<Output = Result<T, AcmeError>>,
) -> Result<T, AcmeError> {
    tokio::time::timeout_at(deadline, work).await.unwrap_or(Err(AcmeError::Slow { step, retry_after: None }))
}

async fn place(account: &Account, names: &[&HostName], previous: Option<&Certificate>) -> Result<Order, AcmeError> {
    let identifiers: Vec<_> = names.iter().map(|name| Identifier::Dns(name.to_string())).collect();
    if let Some(previous) = previous
        && let Ok(id) = CertificateIdentifier::try_from(previous.leaf_der())
    {
        let replacing = NewOrder::new(&identifiers).replaces(id);
        match account.new_order(&replacing).await.map_err(AcmeError::at(Step::Order)) {
            Ok(order) => return Ok(order),
            // What is replaced is a courtesy: an authority that does not know it, or that certificate, still issues.
            Err(AcmeError::NotAcme { .. }) => {}
            Err(AcmeError::Refused { problem, .. })
                if ["alreadyReplaced", "malformed", "unauthorized"].contains(&problem.kind.as_str()) => {}
            Err(error) => return Err(error),
        }
    }
    account.new_order(&NewOrder::new(&identifiers)).await.map_err(AcmeError::at(Step::Order))
}

/// Has every name verified. Tokens are noted in `published` before they are handed out.
async fn verify(order: &mut Order, challenges: &dyn Challenges, published: &mut Vec<String>) -> Result<(), AcmeError> {
    let failed = AcmeError::at(Step::Challenge);
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(&failed)?;
        let name = authorization.identifier().to_string();
        match authorization.status {
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            status => {
                let detail = format!("its authorization is {status:?}").to_lowercase();
                return Err(AcmeError::NotVerified { name, problem: Problem { kind: String::new(), detail } });
            }
        }
        let Some(mut challenge) = authorization.challenge(ChallengeType::Http01) else {
            return Err(AcmeError::NoHttpChallenge { name });
        };
        // RFC 8555 §8.3. It becomes part of a path that is served.
        if challenge.token.is_empty()
            || !challenge.token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        {
            let reason = "a token has characters that are not of base64url".to_owned();
            return Err(AcmeError::NotAcme { step: Step::Challenge, reason });
        }
        published.push(challenge.token.clone());
        challenges
            .publish(&challenge.token, challenge.key_authorization().as_str())
            .await
            .map_err(|source| AcmeError::Publish { name: name.clone(), source })?;
        challenge.set_ready().await.map_err(&failed).map_err(|error| match error {
            // The challenge itself says why it failed; the request for it was not refused.
            AcmeError::Refused { problem, retry_after: None, .. } if problem.kind != "badNonce" => {
                AcmeError::NotVerified { name, problem }
            }
            error => error,
        })?;
    }
    if order.state().status != OrderStatus::Pending && order.state().status != OrderStatus::Invalid {
        return Ok(());
    }
    match order.poll_ready(&POLL).await {
        Ok(OrderStatus::Invalid) => Err(why_invalid(order).await.unwrap_or_else(|| AcmeError::Refused {
            step: Step::Challenge,
            problem: Problem { kind: String::new(), detail: "the order is invalid".to_owned() },
            retry_after: None,
        })),
        Ok(_) => Ok(()),
        Err(error @ instant_acme::Error::Api(_)) => Err(why_invalid(order).await.unwrap_or_else(|| failed(error))),
        Err(error) => Err(failed(error)),
    }
}

/// The name that was not verified, and what the authority found there.
async fn why_invalid(order: &mut Order) -> Option<AcmeError> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.ok()?;
        let name = authorization.identifier().to_string();
        let state = authorization.refresh().await.ok()?;
        if let Some(error) = state.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
            return Some(AcmeError::NotVerified { name, problem: Problem::of(error) });
        }
    }
    None
}

async fn fetch(order: &mut Order, names: &[&HostName]) -> Result<Certificate, AcmeError> {
    let not_made = |error: rcgen::Error| AcmeError::Key(error.to_string());
    let mut params =
        CertificateParams::new(names.iter().map(|name| name.to_string()).collect::<Vec<_>>()).map_err(not_made)?;
    params.distinguished_name = DistinguishedName::new();
    let mut key = KeyPair::generate().map_err(not_made)?;
    let request = params.serialize_request(&key);
    let key_pem = KeyPem::new(key.serialize_pem());
    key.zeroize();
    order.finalize_csr(request.map_err(not_made)?.der()).await.map_err(AcmeError::at(Step::Finalize))?;
    let chain = order.poll_certificate(&POLL).await.map_err(AcmeError::at(Step::Download))?;
    checked(&chain, &key_pem, names)
}

fn checked(chain: &str, key: &KeyPem, names: &[&HostName]) -> Result<Certificate, AcmeError> {
    let certificate = Certificate::from_pem(chain, key.expose())?;
    match names.iter().find(|name| !certificate.covers(name)) {
        Some(name) => Err(AcmeError::NotCovered { name: name.to_string() }),
        None => Ok(certificate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_lacks_one_of_the_names_is_not_taken() {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["a.example.com".to_owned(), "*.b.example.com".to_owned()]).unwrap();
        let chain = params.self_signed(&key).unwrap().pem();
        let key = KeyPem::new(key.serialize_pem());
        let [a, b, c] = ["a.example.com", "x.b.example.com", "c.example.com"].map(|text| text.parse().unwrap());
        assert!(checked(&chain, &key, &[&a, &b]).is_ok());
        let refused = checked(&chain, &key, &[&a, &b, &c]).unwrap_err();
        assert!(matches!(&refused, AcmeError::NotCovered { name } if name == "c.example.com"), "{refused:?}");
    }
}
