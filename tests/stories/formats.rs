//! Every format that an image may come in, told by the name of its file.

use crate::harness::{Options, Service, image, image_metadata};

matrix!(every_format_comes_in_and_goes_out_by_its_name: sqlite_gateway, postgres_gateway);

async fn every_format_comes_in_and_goes_out_by_its_name(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    for (number, format) in ["bin", "hex", "elf", "tar.gz", "zip"]
        .into_iter()
        .enumerate()
    {
        let version = format!("2.{number}.0");
        let (metadata, name) = (image_metadata(&version), format!("Firmware.{format}"));
        let uploaded = admin.upload(&metadata, &name, image(&version)).await;
        let uploaded = uploaded.expect(201);
        assert_eq!(uploaded["format"], format);
        let id = uploaded["firmware_id"].as_str().unwrap();
        let path = format!("/api/v1/ota/firmware/{id}/download");
        let link = admin.get(&path).await.expect(200);
        let url = link["url"].as_str().unwrap();
        let answer = admin.client().get(url).send().await.unwrap();
        let shown = answer.headers()["content-disposition"].to_str().unwrap();
        assert!(shown.ends_with(&format!("{version}.{format}\"")), "{shown}");
        assert_eq!(answer.bytes().await.unwrap(), image(&version));
    }
    let metadata = image_metadata("3.0.0");
    let refused = admin
        .upload(&metadata, "firmware.exe", image("3.0.0"))
        .await;
    refused.refused(400);
}
