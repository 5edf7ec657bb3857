//! Providers that give credentials of any length, run dry, or hang.

use std::sync::atomic::AtomicU32;

use aws_credential_types::credential_fn::provide_credentials_fn;

use super::*;

/// Credentials number 1, 2, 3 …, each valid for `lives`; from number `until` on there are none.
#[derive(Debug)]
struct Numbered {
    lives: Option<Duration>,
    until: u32,
    given: AtomicU32,
}

impl ProvideCredentials for Numbered {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let number = self.given.fetch_add(1, Ordering::Relaxed) + 1;
        future::ProvideCredentials::ready(if number >= self.until {
            Err(CredentialsError::not_loaded("none left"))
        } else {
            let expiry = self.lives.map(|lives| SystemTime::now() + lives);
            Ok(Credentials::new(format!("AKID{number}"), "secret", None, expiry, "test"))
        })
    }
}

fn nobody() -> Identity {
    Identity {
        region: None,
        profile: None,
        role_arn: None,
        external_id: None,
        endpoint_url: None,
        ca_file: None,
    }
}

fn source(lives: Option<u64>, until: u32) -> Source {
    let numbered = Numbered { lives: lives.map(Duration::from_secs), until, given: AtomicU32::new(0) };
    Source::with_base(nobody(), SdkConfig::builder().build(), numbered)
}

async fn key(source: &Source) -> String {
    source.get().await.unwrap().access_key_id().to_owned()
}

fn renew_at(source: &Source, at: Instant) {
    source.state().held.as_mut().unwrap().renew_at = at;
}

#[tokio::test]
async fn are_kept_until_shortly_before_they_expire() {
    for lives in [None, Some(3600)] {
        let source = source(lives, 9);
        assert_eq!((&*key(&source).await, &*key(&source).await), ("AKID1", "AKID1"), "{lives:?}");
    }
    let over = source(Some(0), 9);
    assert_eq!((&*key(&over).await, &*key(&over).await), ("AKID1", "AKID2"));
    // A third of a short life, and a quarter of an hour of a long one.
    for (lives, kept) in [(900, 600), (3600, 2700), (43_200, 42_300)] {
        let source = source(Some(lives), 9);
        key(&source).await;
        let left = source.state().held.as_ref().unwrap().renew_at - Instant::now();
        assert!(left.as_secs().abs_diff(kept) <= 1, "{lives}: {left:?}");
    }
}

#[tokio::test]
async fn old_ones_serve_while_new_ones_cannot_be_had() {
    let valid = source(Some(200), 2);
    assert_eq!(&*key(&valid).await, "AKID1");
    renew_at(&valid, Instant::now());
    assert_eq!(&*key(&valid).await, "AKID1");
    let expiring = source(Some(0), 2);
    assert_eq!(&*key(&expiring).await, "AKID1");
    assert_eq!(expiring.get().await.unwrap_err().class, Class::Access);
}

#[tokio::test(start_paused = true)]
async fn others_are_looked_for_instead_of_refused_ones_which_are_kept_if_there_are_none() {
    let (seldom, at_once) = (Duration::from_secs(300), Duration::ZERO);
    let source = source(None, 3);
    let one = source.get().await.unwrap();
    assert!(!source.others_than(&one, seldom).await, "that was just done");
    assert!(source.others_than(&one, at_once).await);
    assert_eq!(&*key(&source).await, "AKID2");
    assert!(source.others_than(&one, seldom).await, "others are there already");
    let two = source.get().await.unwrap();
    let asked = || source.state().renewal.as_ref().unwrap().began;
    for after in [1, 14, 20] {
        let before = asked();
        tokio::time::sleep(Duration::from_secs(after)).await;
        assert!(!source.others_than(&two, at_once).await, "there are none");
        assert_eq!(asked() > before, after != 14, "nobody is asked again soon");
    }
    assert_eq!(&*key(&source).await, "AKID2");
}

/// Gives AKID1 at once, does not answer the second time as long as `hangs`, and AKID3 then.
fn hanging(hangs: Duration) -> Source {
    let asked = AtomicU32::new(0);
    let provider = provide_credentials_fn(move || {
        let number = asked.fetch_add(1, Ordering::Relaxed) + 1;
        async move {
            if number == 2 {
                tokio::time::sleep(hangs).await;
                return Err(CredentialsError::not_loaded("too late"));
            }
            let expiry = SystemTime::now() + Duration::from_secs(3600);
            Ok(Credentials::new(format!("AKID{number}"), "secret", None, Some(expiry), "test"))
        }
    });
    Source::with_base(nobody(), SdkConfig::builder().build(), provider)
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_answer_takes_nothing_from_those_that_are_valid() {
    let source = hanging(Duration::from_secs(40));
    let began = Instant::now();
    assert_eq!(&*key(&source).await, "AKID1");
    renew_at(&source, began);
    // A caller that is cancelled loses nothing for the others, and those wait for the same renewal.
    assert!(tokio::time::timeout(Duration::from_secs(1), source.get()).await.is_err());
    let (one, other) = tokio::join!(key(&source), key(&source));
    assert_eq!((&*one, &*other), ("AKID1", "AKID1"));
    assert_eq!(began.elapsed().as_secs(), 3, "from the renewal's beginning on");
    renew_at(&source, began);
    assert_eq!(&*key(&source).await, "AKID1");
    assert_eq!(began.elapsed().as_secs(), 3, "it is overdue already: nobody waits for it again");
    assert_eq!(source.renew().await.unwrap_err().class, Class::Network);
    tokio::time::sleep(Duration::from_secs(41)).await;
    assert_eq!(&*key(&source).await, "AKID3", "it has failed, and the next one has not");
}

#[tokio::test(start_paused = true)]
async fn one_that_never_answers_is_given_up_for_the_next() {
    let source = hanging(Duration::MAX);
    key(&source).await;
    source.state().held = None;
    let began = Instant::now();
    let failure = source.get().await.unwrap_err();
    assert_eq!(failure, Failure::new(Class::Network, "credentials: no answer within 12 s"));
    assert_eq!(began.elapsed().as_secs(), 12);
    assert!(source.get().await.unwrap_err().text.contains("24 s"), "it is still the same renewal");
    tokio::time::sleep(Duration::from_secs(37)).await;
    assert_eq!(&*key(&source).await, "AKID3");
}
