from simtrail.cli import main

main()
