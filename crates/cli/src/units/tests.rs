use super::*;

/// The problems of these files, and the units that they make with their links.
fn generated(files: &[(&str, &str)]) -> (Vec<String>, BTreeMap<String, String>) {
    let scratch = tempfile::tempdir().unwrap();
    let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    for (name, text) in files {
        fs::write(from.join(name), text).unwrap();
    }
    let problems = generate("/usr/bin/proa".as_ref(), Some("/srv/a b".as_ref()), &from, &to).unwrap();
    let shown = |problem: &Problem| problem.to_string().replace(&format!("{}/", from.display()), "");
    let mut units = BTreeMap::new();
    for entry in fs::read_dir(&to).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_file() {
            units.insert(name, fs::read_to_string(entry.path()).unwrap());
        } else {
            for link in fs::read_dir(entry.path()).unwrap().flatten() {
                let leads = fs::read_link(link.path()).unwrap().display().to_string();
                units.insert(format!("{name}/{}", link.file_name().to_string_lossy()), leads);
            }
        }
    }
    (problems.iter().map(shown).collect(), units)
}

/// The problem of a container's file.
fn problem(text: &str) -> String {
    let (problems, units) = generated(&[("x.container", text)]);
    assert!(units.is_empty(), "{units:?}");
    problems.join("\n")
}

const WEB: &str = "\
# A server.
[Unit]
Description=Pages

[Container]
Image=docker.io/library/nginx:1.27
ContainerName=pages
Isolation=vm
Environment=PLAIN=1 \"SPACED=a b\" 'COST=$5'
PublishPort=127.0.0.1:8080:80
Volume=data.volume:/usr/share/nginx/html:ro
Volume=/srv/logs:/logs
Network=net.network
User=101
Group=101
NoNewPrivileges=true
ReadOnly=no
HealthCmd=curl -f http://localhost/
Exec=nginx -g \\
   \"daemon off;\"

[Service]
Restart=always

[Install]
WantedBy=multi-user.target default.target
";

#[test]
fn a_container_with_its_volume_and_network_becomes_three_services() {
    let volume = "[Volume]\nLabel=tier=one\nType=tmpfs\nDevice=tmpfs\nOptions=size=10m\n";
    let network = "[Network]\nNetworkName=front\nSubnet=10.9.0.0/24\nGateway=10.9.0.1\nIPv6=yes\n";
    let files = [("web.container", WEB), ("data.volume", volume), ("net.network", network)];
    let (problems, units) = generated(&files);
    assert_eq!(problems, [""; 0]);
    let names: Vec<&str> = units.keys().map(String::as_str).collect();
    let links = ["default.target.wants/web.service", "multi-user.target.wants/web.service"];
    assert_eq!(names, ["data-volume.service", links[0], links[1], "net-network.service", "web.service"]);
    assert_eq!(units[links[0]], "../web.service");
    assert_eq!(units["web.service"], include_str!("../../tests/web.service"));
    let made =
        |name: &str| units[name].lines().find(|line| line.starts_with("ExecStart=")).unwrap().to_owned();
    let proa = "ExecStart=/usr/bin/proa --root \"/srv/a b\"";
    assert_eq!(
        made("data-volume.service"),
        format!(
            "{proa} volume create --label=tier=one --opt=type=tmpfs --opt=device=tmpfs --opt=o=size=10m systemd-data"
        )
    );
    assert_eq!(
        made("net-network.service"),
        format!("{proa} network create --ignore --gateway=10.9.0.1 --ipv6 --subnet=10.9.0.0/24 front")
    );
}

#[test]
fn a_problem_names_file_and_line_and_the_others_are_made() {
    let wrong = "[Container]\nImage=x\nImages=y\n";
    let (problems, units) =
        generated(&[("bad.container", wrong), ("good.volume", "[Volume]\n"), ("notes.txt", "?")]);
    assert_eq!(problems, ["bad.container:3: unknown key Images in [Container]"]);
    assert_eq!(units.keys().collect::<Vec<_>>(), ["good-volume.service"]);
}

#[test]
fn what_makes_no_sense_is_a_problem_of_its_line() {
    let head = "[Container]\nImage=x\n";
    for (text, says) in [
        ("Image=x\n", "x.container:1: a key before any section"),
        ("[Container\n", "x.container:1: \"[Container\" is no section"),
        ("[Container]\nnothing\n", "x.container:2: \"nothing\" is neither"),
        ("[Container]\nExec=x\n", "x.container: [Container] has no Image"),
        ("[Container]\nImage=--privileged\n", "x.container:2: \"--privileged\" is no reference"),
        ("[Pod]\n", "x.container:1: unknown section [Pod]"),
    ] {
        assert!(problem(text).starts_with(says), "{text}: {}", problem(text));
    }
    for (more, says) in [
        ("ReadOnly=perhaps", "3: ReadOnly: \"perhaps\" is neither true nor false"),
        ("Exec=a \"b", "3: Exec: a quotation mark that is not closed"),
        ("Exec=a \\x00", "3: Exec: \\x00 is no character"),
        ("Volume=data.volume:/x", "3: there is no usable file data.volume beside it"),
        ("Volume=./here:/x", "3: \"./here\" is no absolute path"),
        ("Group=1", "3: Group goes with User"),
        ("PodmanArgs=--privileged", "3: unknown key PodmanArgs"),
        ("[Service]\nExecStart=/bin/sh", "4: ExecStart is what the unit is made for"),
        ("[Install]\nWantedBy=../../x", "4: \"../../x\" is no unit"),
        ("[Install]\nWantedBy=a/b", "4: \"a/b\" is no unit"),
        ("[Install]\nAlias=x.service", "4: unknown key Alias"),
    ] {
        let told = problem(&format!("{head}{more}\n"));
        assert!(told.starts_with(&format!("x.container:{says}")), "{more}: {told}");
    }
}

#[test]
fn no_value_becomes_another_directive() {
    for hostile in ["a\\nExecStart=/bin/sh", "\"a\\nb\"", "'$(id) ${HOME} `id` ; | &'", "\\\"", "--name=x"] {
        let text =
            format!("[Container]\nImage=x\nExec={hostile}\nEnvironment={hostile}\nHostName={hostile}\n");
        let (problems, units) = generated(&[("x.container", &text)]);
        assert_eq!(problems, [""; 0], "{hostile}");
        let unit = &units["x.service"];
        let starts: Vec<&str> = unit.lines().filter(|line| line.starts_with("ExecStart=")).collect();
        assert_eq!(starts.len(), 1, "{unit}");
        // systemd replaces no variable but that of two dollars.
        assert!(!starts[0].replace("$$", "").contains('$'), "{unit}");
    }
}

#[test]
fn hostile_files_are_problems() {
    let long = format!("[Container]\nImage={}\n", "x".repeat(70_000));
    assert!(problem(&long).contains("longer than"));
    assert_eq!(problem("[Container]\nImage=a\u{1}b\n"), "x.container:2: a control character");
    let scratch = tempfile::tempdir().unwrap();
    let from = scratch.path();
    fs::write(from.join("b.container"), [0xff, 0xfe]).unwrap();
    fs::create_dir(from.join("c.volume")).unwrap();
    symlink("/dev/zero", from.join("d.network")).unwrap();
    symlink("nowhere", from.join("e.network")).unwrap();
    fs::write(from.join("f g.volume"), "[Volume]\n").unwrap();
    let problems = generate("/p".as_ref(), None, from, &from.join("to")).unwrap();
    let texts: Vec<&str> = problems.iter().map(|problem| problem.text.as_str()).collect();
    assert_eq!(texts[..3], ["it is not UTF-8", "it is no file", "it is no file"]);
    assert!(texts[3].contains("No such file") && texts[4].contains("its name"), "{texts:?}");
    assert!(generate("/p".as_ref(), None, &from.join("absent"), from).unwrap().is_empty());
}
