//! What a pull asks of a registry (OCI distribution specification 1.1), and the token it needs for it (Docker's "Token
//! Authentication Specification").

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ring::digest::{Context, SHA256, SHA512};
use serde::Deserialize;
use warren_model::ImageReference;
use warren_model::reference::Digest;

use super::error::PullError;
use super::manifest::{self, ACCEPTED, Descriptor, Document};
use super::transport::{Answer, Transport};

/// What registries have to take at most (OCI distribution specification, "Pushing Manifests").
const LARGEST_MANIFEST: u64 = 4 << 20;
const LARGEST_CONFIGURATION: u64 = 8 << 20;
const LARGEST_TOKEN: u64 = 1 << 20;
const LARGEST_COMPLAINT: u64 = 1 << 16;
const MOST_REDIRECTS: usize = 5;
const DIGEST_HEADER: &str = "docker-content-digest";

/// An image as its registry describes it.
pub struct Remote {
    /// That of what the reference leads to, which may be an index.
    pub digest: Digest,
    pub layers: Vec<Descriptor>,
}

/// One image's registry, spoken to without an account.
pub struct Registry {
    transport: Transport,
    reference: ImageReference,
    authorization: Option<HeaderValue>,
}

impl Registry {
    pub fn new(reference: ImageReference) -> Self {
        Self { transport: Transport::default(), reference, authorization: None }
    }

    /// Finds the image for this host's platform. Everything is checked against its digest.
    pub async fn resolve(&mut self) -> Result<Remote, PullError> {
        let wanted = self.reference.digest().cloned();
        let version = self.reference.version().to_owned();
        let (digest, document) = self.document(&version, wanted, None).await?;
        let document = match document {
            Document::Index(manifests) => {
                let chosen = manifest::choose(manifests)?;
                self.document(chosen.digest.as_str(), Some(chosen.digest.clone()), Some(chosen.size)).await?.1
            }
            document => document,
        };
        let Document::Manifest { config, layers } = document else {
            return Err(PullError::malformed("the manifest", "a list of images leads to another list"));
        };
        let configuration = self.configuration(&config).await?;
        manifest::check_configuration(&configuration, layers.len())?;
        Ok(Remote { digest, layers })
    }

    /// Begins to read a blob.
    pub async fn blob(&mut self, blob: &Descriptor, what: &'static str) -> Result<Blob, PullError> {
        let path = format!("blobs/{}", blob.digest);
        let answer = self.get(&path, HeaderMap::new()).await?;
        Ok(Blob { answer, what, expected: blob.clone(), read: 0, hasher: Some(Hasher::new(&blob.digest)) })
    }

    async fn document(
        &mut self,
        version: &str,
        expected: Option<Digest>,
        size: Option<u64>,
    ) -> Result<(Digest, Document), PullError> {
        const WHAT: &str = "the manifest";
        let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(ACCEPTED))]);
        let mut answer = self.get(&format!("manifests/{version}"), headers).await?;
        let announced = match answer.headers().get(DIGEST_HEADER) {
            Some(value) => {
                let text = String::from_utf8_lossy(value.as_bytes());
                Some(text.parse::<Digest>().map_err(|error| PullError::malformed(WHAT, error))?)
            }
            None => None,
        };
        let bytes = answer.whole(WHAT, LARGEST_MANIFEST).await?;
        if let Some(expected) = size.filter(|size| *size != bytes.len() as u64) {
            return Err(PullError::Size { what: WHAT, expected, found: bytes.len() as u64 });
        }
        let digest = match expected.or(announced) {
            Some(expected) => {
                let mut hasher = Hasher::new(&expected);
                hasher.update(&bytes);
                hasher.check(WHAT, &expected)?;
                expected
            }
            None => {
                let mut hasher = Hasher(Context::new(&SHA256));
                hasher.update(&bytes);
                let text = format!("sha256:{}", hasher.hex());
                text.parse().map_err(|error| PullError::malformed(WHAT, error))?
            }
        };
        Ok((digest, Document::parse(&bytes)?))
    }

    async fn configuration(&mut self, config: &Descriptor) -> Result<Bytes, PullError> {
        const WHAT: &str = "the configuration";
        if config.size > LARGEST_CONFIGURATION {
            return Err(PullError::TooLarge { what: WHAT, limit: LARGEST_CONFIGURATION });
        }
        let mut blob = self.blob(config, WHAT).await?;
        let mut whole = Vec::new();
        while let Some(data) = blob.next().await? {
            whole.extend_from_slice(&data);
        }
        Ok(whole.into())
    }

    /// Asks for something of the repository; gets a token first where the registry wants one, and another when that
    /// has expired.
    async fn get(&mut self, path: &str, headers: HeaderMap) -> Result<Answer, PullError> {
        let scheme = if self.reference.is_loopback() { "http" } else { "https" };
        let (host, repository) = (self.reference.host(), self.reference.repository());
        let uri = parse_uri(&format!("{scheme}://{host}/v2/{repository}/{path}"))?;
        let mut answer = self.follow(&uri, &headers).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            let challenge = answer.headers().get_all(header::WWW_AUTHENTICATE).iter();
            let challenge = challenge.filter_map(|value| Challenge::parse(value.to_str().ok()?)).next();
            if let Some(challenge) = challenge {
                self.authorization = Some(self.token(&challenge).await?);
                answer = self.follow(&uri, &headers).await?;
            }
        }
        accept(answer).await
    }

    async fn follow(&self, start: &Uri, headers: &HeaderMap) -> Result<Answer, PullError> {
        let mut uri = start.clone();
        for _ in 0..=MOST_REDIRECTS {
            let mut headers = headers.clone();
            if let Some(authorization) = &self.authorization
                && uri.authority() == start.authority()
                && uri.scheme() == start.scheme()
            {
                headers.insert(header::AUTHORIZATION, authorization.clone());
            }
            let answer = self.transport.get(&uri, headers, self.reference.is_loopback()).await?;
            let location = answer.headers().get(header::LOCATION).filter(|_| answer.status().is_redirection());
            let Some(location) = location else { return Ok(answer) };
            uri = relative(&uri, &String::from_utf8_lossy(location.as_bytes()))?;
        }
        Err(PullError::Redirects { host: self.reference.host().to_owned(), most: MOST_REDIRECTS })
    }

    async fn token(&self, challenge: &Challenge) -> Result<HeaderValue, PullError> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let scope = match &challenge.scope {
            Some(scope) => scope.clone(),
            None => format!("repository:{}:pull", self.reference.repository()),
        };
        let mut url = challenge.realm.clone();
        for (name, value) in [("service", challenge.service.as_deref()), ("scope", Some(scope.as_str()))] {
            if let Some(value) = value {
                url.push(if url.contains('?') { '&' } else { '?' });
                url.push_str(&format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
            }
        }
        let uri = parse_uri(&url)?;
        let answer = self.transport.get(&uri, HeaderMap::new(), self.reference.is_loopback()).await?;
        let host = answer.host().to_owned();
        let refused = |reason: String| PullError::Token { host, reason };
        let mut answer = match accept(answer).await {
            Err(PullError::NotFound { .. }) => return Err(refused("it answers 404".to_owned())),
            answer => answer?,
        };
        let read = async {
            let bytes = answer.whole("its answer", LARGEST_TOKEN).await.map_err(|error| error.to_string())?;
            let token: Token = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
            let token = token.token.or(token.access_token).ok_or("its answer has none")?;
            HeaderValue::from_str(&format!("Bearer {token}")).map_err(|error| error.to_string())
        };
        let mut value = read.await.map_err(refused)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// A blob on its way. What was read is worth something once [`Blob::next`] has said that it was all.
pub struct Blob {
    answer: Answer,
    what: &'static str,
    expected: Descriptor,
    read: u64,
    hasher: Option<Hasher>,
}

impl Blob {
    /// The next bytes; `None` after the last, when size and digest are right.
    pub async fn next(&mut self) -> Result<Option<Bytes>, PullError> {
        let expected = self.expected.size;
        let data = self.answer.next().await?;
        self.read += data.as_ref().map_or(0, |data| data.len() as u64);
        if self.read > expected || (data.is_none() && self.read < expected) {
            return Err(PullError::Size { what: self.what, expected, found: self.read });
        }
        match (&data, &mut self.hasher) {
            (Some(data), Some(hasher)) => hasher.update(data),
            (None, hasher) => {
                hasher.take().map_or(Ok(()), |hasher| hasher.check(self.what, &self.expected.digest))?;
            }
            (Some(_), None) => {}
        }
        Ok(data)
    }
}

struct Hasher(Context);

impl Hasher {
    fn new(digest: &Digest) -> Self {
        Self(Context::new(if digest.algorithm() == "sha512" { &SHA512 } else { &SHA256 }))
    }

    fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn hex(self) -> String {
        self.0.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn check(self, what: &'static str, expected: &Digest) -> Result<(), PullError> {
        let found = self.hex();
        if found == expected.hex() {
            return Ok(());
        }
        let found = format!("{}:{found}", expected.algorithm());
        Err(PullError::Mismatch { what, expected: expected.clone(), found })
    }
}

/// Turns an answer that is no success into what it means.
async fn accept(mut answer: Answer) -> Result<Answer, PullError> {
    let status = answer.status();
    if status == StatusCode::OK {
        return Ok(answer);
    }
    let host = answer.host().to_owned();
    let said = answer.whole("a complaint", LARGEST_COMPLAINT).await.map(|body| complaint(&body)).unwrap_or_default();
    Err(match status {
        StatusCode::NOT_FOUND => PullError::NotFound { host, said },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => PullError::Unauthorized { host, said },
        status => PullError::Status { host, status, said },
    })
}

/// The first message of a registry's error document, fit for a sentence.
fn complaint(body: &[u8]) -> String {
    let document: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let first = &document["errors"][0];
    let text = [&first["message"], &first["code"], &document["details"]].into_iter().find_map(|field| field.as_str());
    match text {
        Some(text) => format!(" ({})", text.chars().filter(|c| !c.is_control()).take(200).collect::<String>()),
        None => String::new(),
    }
}

/// What a registry wants before it answers (RFC 6750 §3).
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    realm: String,
    service: Option<String>,
    scope: Option<String>,
}

impl Challenge {
    /// `None` where a token is not what is wanted.
    fn parse(text: &str) -> Option<Self> {
        let (kind, mut rest) = text.trim().split_once(' ')?;
        if !kind.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_at(after.find(',').unwrap_or(after.len())),
            };
            match name.trim_matches([' ', ',']).to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value.to_owned()),
                "service" => service = Some(value.to_owned()),
                "scope" => scope = Some(value.to_owned()),
                _ => {}
            }
            rest = after;
        }
        Some(Self { realm: realm?, service, scope })
    }
}

/// Where a redirect leads: to a whole URL, or to a path of the same host (RFC 9110 §10.2.2).
fn relative(from: &Uri, location: &str) -> Result<Uri, PullError> {
    let same_host = location.starts_with('/') && !location.starts_with("//");
    match (same_host, from.scheme_str(), from.authority()) {
        (true, Some(scheme), Some(authority)) => parse_uri(&format!("{scheme}://{authority}{location}")),
        _ => parse_uri(location),
    }
}

fn parse_uri(text: &str) -> Result<Uri, PullError> {
    text.parse().map_err(|_| PullError::Url { url: text.chars().filter(|c| !c.is_control()).take(300).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_read() {
        let text = r#"Bearer realm="https://auth.example/token",service="reg, one",scope="repository:a/b:pull,push""#;
        let challenge = Challenge::parse(text).unwrap();
        assert_eq!(challenge.realm, "https://auth.example/token");
        assert_eq!(challenge.service.as_deref(), Some("reg, one"));
        assert_eq!(challenge.scope.as_deref(), Some("repository:a/b:pull,push"));
        let plain = Challenge::parse("bearer service=x, realm=https://a/t").unwrap();
        assert_eq!((plain.realm.as_str(), plain.service.as_deref()), ("https://a/t", Some("x")));
        for other in ["Basic realm=\"x\"", "Bearer", "Bearer realm=\"x", "Bearer service=x", ""] {
            assert_eq!(Challenge::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_redirect_leads_to_a_url_or_a_path_of_the_same_host() {
        let from: Uri = "https://r.io/v2/x/blobs/y".parse().unwrap();
        assert_eq!(relative(&from, "/z?q=1").unwrap(), "https://r.io/z?q=1");
        assert_eq!(relative(&from, "https://cdn.io/z").unwrap(), "https://cdn.io/z");
        assert!(relative(&from, "https://a b/").is_err());
    }
}
