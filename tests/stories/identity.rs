//! Who may do what: keys with roles, tokens, what another service knows, calls from within the house, devices.

use std::process::Command;

use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::harness::{
    Admin, Answer, Asked, Neighbour, Options, Says, Service, device_json, eventually,
};

matrix!(a_key_opens_what_its_roles_allow: sqlite_gateway, postgres_gateway);
matrix!(keys_are_made_and_revoked_beside_the_running_service: sqlite_gateway, postgres_gateway);
matrix!(a_key_from_before_opens_for_nobody_who_looks_like_another: sqlite_gateway, postgres_gateway);
matrix!(a_token_says_who_it_is: sqlite_gateway);
matrix!(another_service_is_asked_for_whom_it_knows: sqlite_gateway);
matrix!(a_call_from_within_the_house_is_one_on_its_own_listener: sqlite_gateway);
matrix!(a_device_is_known_by_its_secret_and_may_run_nothing: sqlite_gateway, postgres_gateway);

const KEYS: &str = "/api/v1/ota/keys";
const CAMPAIGNS: &str = "/api/v1/ota/campaigns";
/// An end of a token, in seconds since 1970.
const LONG_FROM_NOW: u64 = 4_000_000_000;
const SECRET: &str = "a secret of at least thirty-two bytes";

/// Makes a key and returns its id and a client that uses it.
pub async fn key(service: &Service, name: &str, role: &str) -> (String, Admin) {
    let made = service
        .admin()
        .post(KEYS, json!({ "name": name, "roles": [role] }))
        .await
        .expect(201);
    let text = |field: &str| made[field].as_str().unwrap().to_owned();
    (
        text("key_id"),
        Admin::new(&service.ready().http, &text("secret")),
    )
}

async fn a_key_opens_what_its_roles_allow(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let made = admin
        .post(
            KEYS,
            json!({"name": "dashboard", "subject": "wall", "roles": ["viewer"], "expires_at": "2999-01-01T00:00:00Z"}),
        )
        .await
        .expect(201);
    let secret = made["secret"].as_str().unwrap().to_owned();
    insta::allow_duplicates! { insta::assert_json_snapshot!(made, {
        ".key_id" => "[id]", ".secret" => "[secret]", ".created_at" => "[time]",
    }, @r#"
    {
      "created_at": "[time]",
      "created_by": "admin",
      "expires_at": "2999-01-01T00:00:00Z",
      "key_id": "[id]",
      "last_used_at": null,
      "name": "dashboard",
      "revoked_at": null,
      "roles": [
        "viewer"
      ],
      "secret": "[secret]",
      "subject": "wall"
    }
    "#) }
    let viewer = Admin::new(&service.ready().http, &secret);
    viewer.get(CAMPAIGNS).await.expect(200);
    let refused = viewer.post(CAMPAIGNS, json!({})).await.refused(403);
    insta::allow_duplicates! { insta::assert_json_snapshot!(refused, { ".request_id" => "[id]" }, @r#"
    {
      "code": "forbidden",
      "detail": "this needs the role operator; \"wall\" has viewer",
      "request_id": "[id]"
    }
    "#) }
    viewer.get(KEYS).await.refused(403);
    eventually("the use of the key is written down", async || {
        let list = admin.get(KEYS).await.expect(200);
        assert!(!list.to_string().contains(&secret), "it was shown once");
        match &list["keys"][0]["last_used_at"] {
            Value::String(at) => Ok(at.clone()),
            _ => Err(list.to_string()),
        }
    })
    .await;

    let (_, uploader) = key(&service, "build", "uploader").await;
    let firmware = uploader.image("2.1.0").await;
    uploader
        .act("camp_0000000000000000", "start")
        .await
        .refused(403);
    let (operator_id, operator) = key(&service, "night shift", "operator").await;
    let campaign = operator
        .create_campaign(json!({ "name": "n", "firmware_id": firmware }))
        .await;
    assert_eq!(admin.campaign(&campaign).await["created_by"], "night shift");

    let path = format!("{KEYS}/{operator_id}");
    operator.delete(&path).await.refused(403);
    let revoked = admin.delete(&path).await.expect(200);
    assert!(revoked["revoked_at"].is_string(), "{revoked}");
    let refused = operator.get(CAMPAIGNS).await.refused(401);
    assert_eq!(refused["detail"], "the key has expired or was revoked");
    assert_eq!(
        admin.delete(&path).await.expect(200),
        revoked,
        "once is enough"
    );
    admin
        .delete(&format!("{KEYS}/key_0000000000000000"))
        .await
        .refused(404);
    wrong_keys_are_refused(&admin).await;
}

async fn wrong_keys_are_refused(admin: &Admin) {
    for (wrong, names) in [
        (json!({"name": "", "roles": ["viewer"]}), "name"),
        (json!({"name": "n", "roles": []}), "roles"),
        (json!({"name": "n", "roles": ["root"]}), "roles[0]"),
        (json!({"name": "n"}), "roles"),
        (
            json!({"name": "ota_service", "roles": ["viewer"]}),
            "subject",
        ),
        (json!({"name": "admin ", "roles": ["viewer"]}), "subject"),
        (
            json!({"name": "n", "subject": "ad\u{200b}min", "roles": ["viewer"]}),
            "subject",
        ),
        (
            json!({"name": "n", "roles": ["viewer"], "expires_at": "2001-01-01T00:00:00Z"}),
            "expires_at",
        ),
        (
            json!({"name": "n", "roles": ["viewer"], "secret": "mine"}),
            "secret",
        ),
    ] {
        let refused = admin.post(KEYS, wrong).await.refused(400);
        assert!(
            refused["detail"].as_str().unwrap().contains(names),
            "{refused}"
        );
    }
}

/// Runs the command line on the service's own configuration.
fn run(service: &Service, arguments: &[&str]) -> String {
    let mut command: Command = service.command(&service.data_dir());
    let output = command.args(arguments).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let complained = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}{complained}");
    said
}

async fn keys_are_made_and_revoked_beside_the_running_service(options: Options) {
    let service = Service::start(options).await;
    let arguments = [
        "keys", "create", "--name", "cron", "--role", "viewer", "--role", "operator",
    ];
    let secret = run(&service, &arguments).trim().to_owned();
    let cron = Admin::new(&service.ready().http, &secret);
    cron.get(CAMPAIGNS).await.expect(200);
    let list = run(&service, &["keys", "list"]);
    assert!(
        list.contains("cron") && list.contains("viewer operator"),
        "{list}"
    );
    assert!(!list.contains(&secret));
    let id = list.split_whitespace().next().unwrap().to_owned();
    run(&service, &["keys", "revoke", &id]);
    eventually("the service notices", async || {
        match cron.get(CAMPAIGNS).await.status {
            401 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
}

async fn a_key_from_before_opens_for_nobody_who_looks_like_another(options: Options) {
    let service = Service::start(options).await;
    let (_, plain) = key(&service, "plain", "viewer").await;
    let (_, look_alike) = key(&service, "look-alike", "viewer").await;
    service
        .tamper("UPDATE api_keys SET subject = 'admin ' WHERE name = 'look-alike'")
        .await
        .unwrap();
    let refused = look_alike.get(CAMPAIGNS).await.refused(401);
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("make another key"), "{detail}");
    plain.get(CAMPAIGNS).await.expect(200);
}

fn token(claims: &Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::default(), claims, &key).unwrap()
}

async fn a_token_says_who_it_is(options: Options) {
    let options = options
        .with("JWT_SECRET", SECRET)
        .with("JWT_ISSUER", "house")
        .with("JWT_AUDIENCE", "ota");
    let service = Service::start(options).await;
    let http = &service.ready().http;
    let claims = |roles: Value| json!({"sub": "user-7", "iss": "house", "aud": "ota", "exp": LONG_FROM_NOW, "roles": roles});
    let user = Admin::new(http, &token(&claims(json!(["operator", "uploader"]))));
    let firmware = user.image("2.1.0").await;
    let campaign = user
        .create_campaign(json!({ "name": "n", "firmware_id": firmware }))
        .await;
    assert_eq!(user.campaign(&campaign).await["created_by"], "user-7");
    user.get(KEYS).await.refused(403);
    let nobody = Admin::new(http, &token(&claims(json!(["cook"]))));
    let refused = nobody.get(CAMPAIGNS).await.refused(403);
    let detail = refused["detail"].as_str().unwrap();
    assert!(
        detail.contains("no role that this service knows"),
        "{detail}"
    );
    for (field, wrong) in [
        ("exp", json!(1)),
        ("aud", json!("other")),
        ("iss", json!(null)),
        ("sub", json!(7)),
        ("sub", json!("admin\u{a0}")),
        ("sub", json!("\u{202e}nimda")),
    ] {
        let mut claims = claims(json!(["operator"]));
        claims[field] = wrong;
        let stranger = Admin::new(http, &token(&claims));
        stranger.get(CAMPAIGNS).await.refused(401);
    }
    let both = user
        .client()
        .get(user.url(CAMPAIGNS))
        .bearer_auth(token(&claims(json!(["viewer"]))))
        .header("X-API-Key", service.key());
    assert_eq!(both.send().await.unwrap().status(), 400);
}

/// A service that knows one key and one token.
fn knows_two(asked: &Asked) -> Says {
    let known = match asked.path.as_str() {
        "/api/v1/auth/verify-token" => asked.body == json!({"token": "a.b.c"}),
        "/api/v1/auth/verify-api-key" => asked.body == json!({"api_key": "theirs"}),
        _ => return Says::Json(404, Value::Null),
    };
    let verdict = if known {
        json!({"valid": true, "user_id": "colleague", "roles": ["viewer"]})
    } else {
        json!({"valid": false})
    };
    Says::Json(200, verdict)
}

async fn another_service_is_asked_for_whom_it_knows(options: Options) {
    let mut elsewhere = Neighbour::start(knows_two).await;
    let service = Service::start(options.with("AUTH_SERVICE_URL", elsewhere.url())).await;
    let with = |credential: &str| Admin::new(&service.ready().http, credential);
    with(service.key()).get(CAMPAIGNS).await.expect(200);
    assert_eq!(
        elsewhere.asked().len(),
        0,
        "our own key is our own business"
    );
    for known in ["a.b.c", "theirs"] {
        with(known).get(CAMPAIGNS).await.expect(200);
        with(known).get(CAMPAIGNS).await.expect(200);
        with(known).post(CAMPAIGNS, json!({})).await.refused(403);
    }
    assert_eq!(
        elsewhere.asked().len(),
        2,
        "an answer is believed for a while"
    );
    with("a.b.d").get(CAMPAIGNS).await.refused(401);
    with("nobody's").get(CAMPAIGNS).await.refused(401);

    elsewhere.stop().await;
    with("a.b.c").get(CAMPAIGNS).await.expect(200);
    let unknown = with("a.b.e").get(CAMPAIGNS).await.refused(503);
    assert_eq!(unknown["code"], "auth_unavailable");
    let admin = service.admin();
    let health = admin.health().await;
    let counters = &health["counters"];
    assert_eq!(counters["auth_service"]["unavailable"], 1, "{counters}");
    assert_eq!(health["status"], "degraded");
    let told = &health["components"]["auth_service"];
    assert_eq!(told["status"], "unhealthy", "{told}");
    let detail = told["detail"].as_str().unwrap();
    assert!(detail.starts_with("away since 20"), "{detail}");
    admin.get("/health/ready").await.expect(200);

    // Back, and not yet at its best: a question is asked again.
    let mut times = 0_u32;
    elsewhere.thinks(move |asked| {
        times += u32::from(asked.path != "/health");
        if times == 1 {
            return Says::Json(503, Value::Null);
        }
        knows_two(asked)
    });
    elsewhere.start_again().await;
    with("a.b.f").get(CAMPAIGNS).await.refused(401);
    let told = admin.health().await["components"]["auth_service"].clone();
    assert_eq!(told["status"], "healthy", "{told}");
}

/// Sends a request without any credential but a header.
async fn internal(admin: &Admin, method: reqwest::Method, path: &str) -> Answer {
    internal_with(admin, method, path, &[]).await
}

/// The same with more headers.
async fn internal_with(
    admin: &Admin,
    method: reqwest::Method,
    path: &str,
    headers: &[(&str, &str)],
) -> Answer {
    let request = admin
        .client()
        .request(method, admin.url(path))
        .header("X-Internal-Call", "true");
    let request = headers.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    });
    let response = request.send().await.unwrap();
    Answer {
        status: response.status().as_u16(),
        body: response.json().await.unwrap_or_default(),
    }
}

async fn a_call_from_within_the_house_is_one_on_its_own_listener(options: Options) {
    use reqwest::Method;
    let options = options
        .with("INTERNAL_ADDR", "127.0.0.1:0")
        .with("RATE_LIMIT_AUTH_FAILURES", "3/hour");
    let service = Service::start(options).await;
    let public = service.admin();
    internal(&public, Method::GET, CAMPAIGNS).await.refused(401);
    let inside = Admin::new(service.ready().internal.as_deref().unwrap(), service.key());
    internal(&inside, Method::GET, CAMPAIGNS).await.expect(200);
    internal(&inside, Method::POST, CAMPAIGNS)
        .await
        .refused(403);
    internal(&inside, Method::GET, KEYS).await.refused(403);
    let device = internal(&inside, Method::POST, "/api/v1/ota/devices/none/update").await;
    device.refused(415);
    inside.get(KEYS).await.expect(200);

    // A page in a browser on this machine, whose name leads here.
    for page in [
        ("Host", "rebound.example.com"),
        ("Origin", "http://127.0.0.1"),
    ] {
        let refused = internal_with(&inside, Method::GET, CAMPAIGNS, &[page]).await;
        let refused = refused.refused(401);
        let detail = refused["detail"].as_str().unwrap();
        assert!(detail.contains("localhost"), "{detail}");
    }

    // Who guesses keys there holds up nobody who shows none.
    let guesser = Admin::new(service.ready().internal.as_deref().unwrap(), "guess");
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(guesser.get(CAMPAIGNS).await.status);
    }
    assert_eq!(statuses, [401, 401, 401, 401, 429]);
    internal(&inside, Method::GET, CAMPAIGNS).await.expect(200);
}

async fn a_device_is_known_by_its_secret_and_may_run_nothing(options: Options) {
    let service = Service::start(options).await;
    let device = service.register(device_json("frame:1")).await;
    let admin = service.admin();
    let status = async |secret: &str, path: &str| {
        let request = admin
            .client()
            .get(admin.url(path))
            .basic_auth(&device.username, Some(secret));
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(status(&device.password, CAMPAIGNS).await, 403);
    assert_eq!(status(&device.password, KEYS).await, 403);
    assert_eq!(status("wrong", CAMPAIGNS).await, 401);
    assert_eq!(status(service.key(), CAMPAIGNS).await, 401);
}
